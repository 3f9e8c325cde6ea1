"""How tests are handed to several workers: a server that modules share is started by one, once."""

from __future__ import annotations

from typing import Final

from xdist.scheduler import LoadScopeScheduling

from minitron_trt.samples import NAMES

# Modules whose tests call the session's `served`, a server of each sample, or compare with the same
# texts of transformers.
SERVED: Final = frozenset(
    {
        "tests/triton_repo/test_bounds.py",
        "tests/triton_repo/test_chat_served.py",
        "tests/triton_repo/test_evaluate_served.py",
        "tests/triton_repo/test_aiperf.py",
        "tests/triton_repo/test_bench.py",
        "tests/triton_repo/test_foreign_clients.py",
        "tests/triton_repo/test_fuzz.py",
        "tests/triton_repo/test_fuzz_http.py",
        "tests/triton_repo/test_gguf_served.py",
        "tests/triton_repo/test_metrics.py",
        "tests/triton_repo/test_prometheus.py",
        "tests/triton_repo/test_server.py",
        "tests/triton_repo/test_server_tensors.py",
        "tests/triton_repo/test_soak.py",
        "tests/triton_repo/test_tasks_served.py",
        "tests/triton_repo/runtimes/test_runtime.py",
    }
)
# Modules whose tests call the session's `single`.
SINGLE: Final = frozenset(
    {
        "tests/triton_repo/runtimes/test_runtime_http.py",
        "tests/triton_repo/runtimes/test_runtime_serving.py",
    }
)
# Modules whose tests call the session's `one_response`.
ONE_RESPONSE: Final = frozenset(
    {
        "tests/triton_repo/test_aiperf.py",
        "tests/triton_repo/test_foreign_clients.py",
        "tests/triton_repo/test_server_text_one.py",
    }
)
# Modules that calibrate in the test's process: to import ModelOpt takes a worker ten seconds, and
# what one has measured of a sample another need not measure again (tests/calibrations.py).
CALIBRATING: Final = frozenset(
    {
        "tests/build/tensorrt/test_network_fp8.py",
        "tests/convert/calibration/test_calibration.py",
        "tests/convert/source/test_fp8_forms.py",
        "tests/convert/source/test_fp8_source.py",
        "tests/convert/test_modelopt.py",
        "tests/convert/verification/test_verify.py",
        "tests/executor/test_quantized.py",
    }
)


class ByServer(LoadScopeScheduling):  # type: ignore[misc]
    """Keep together the tests of a module, those that share a server, and those that calibrate."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        if sample := next((name for name in NAMES if module in SERVED and name in test), None):
            return sample
        if module in CALIBRATING:
            return "calibrating"
        if module in ONE_RESPONSE:
            return "one response"
        return "single" if module in SINGLE else module
