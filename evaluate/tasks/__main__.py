"""lm_eval's own command line, in which `--model minitron-trt` is known.

    python -m minitron_trt.evaluate.tasks --model minitron-trt --model_args pretrained=checkpoint

takes whatever else lm_eval takes.
"""

from __future__ import annotations

import sys

import click

from minitron_trt.errors import MinitronError, MissingExtraError, one_line


def main() -> None:
    """Run lm_eval; what is wrong with a model or server is one line, as with all commands."""
    try:
        try:
            from lm_eval.__main__ import cli_evaluate
        except ImportError:
            raise MissingExtraError("lm-eval", "tasks", "lm_eval") from None

        import minitron_trt.evaluate.tasks.harness_model  # noqa: F401 - registers the model

        cli_evaluate()
    except MinitronError as error:
        click.echo(one_line(f"error: {error}"), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
