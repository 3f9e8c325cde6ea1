"""A plan as a picture: what fills each GPU's memory, as SVG."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from minitron_trt.build.plan.sizing import Plan, PlanRow

_PARTS: Final = (
    ("weights", "#4c72b0"),
    ("activations", "#dd8452"),
    ("reserve", "#8c8c8c"),
    ("KV cache", "#55a868"),
    ("free", "#eeeeee"),
)
_LEFT, _BAR, _RIGHT, _TOP, _ROW = 230, 520, 150, 64, 26


def chart(plan: Plan) -> str:
    """Return the SVG of a plan: one bar per row, as long as the GPU's memory."""
    fitting = [row for row in plan.rows if row.recipe is not None]
    most = max((row.target.gpu.memory_bytes for row in fitting), default=1)
    height = _TOP + _ROW * max(len(fitting), 1) + 12
    title = f"{plan.model.name}: GPU memory at {plan.input_len}+{plan.output_len} tokens"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _BAR + _RIGHT}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        _text(12, 22, title, size=15),
        *_legend(),
        *(line for place, row in enumerate(fitting) for line in _bar(place, row, most)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _legend() -> list[str]:
    lines = []
    for place, (name, colour) in enumerate(_PARTS):
        x = _LEFT + place * 100
        lines += [_box(x, 38, 12, 12, colour), _text(x + 17, 48, name)]
    return lines


def _bar(place: int, row: PlanRow, most: int) -> list[str]:
    assert row.recipe is not None
    held, y = row.recipe.forecast, _TOP + place * _ROW
    parts = [held.weights_bytes, held.activation_bytes, held.reserve_bytes, held.kv_pool_bytes]
    parts.append(held.gpu_bytes - sum(parts))
    lines = [_text(12, y + 14, f"{row.target.gpu.name}  {row.precision}  tp {row.tp}")]
    x = float(_LEFT)
    for size, (_, colour) in zip(parts, _PARTS, strict=True):
        width = _BAR * max(size, 0) / most
        lines.append(_box(x, y, width, _ROW - 8, colour))
        x += width
    lines.append(_text(x + 6, y + 14, f"{row.sequences} sequences"))
    return lines


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" xml:space="preserve">{escape(text)}</text>'
    )
