from __future__ import annotations

from typing import Any

from segtune.export.verdict import Candidate, verdict


def row(agreement: float, time: float, difference: float | None = -0.002) -> dict[str, Any]:
    interval = None if difference is None else [difference - 0.001, difference + 0.001]
    return {"agreement": agreement, "time": time, "difference": difference, "interval": interval}


PLAIN = Candidate("fp32", row(1.0, 1.0, 0.0))


def test_the_faster_file_is_recommended() -> None:
    found = verdict([PLAIN, Candidate("int8", row(0.995, 0.5))], 0.99)
    assert found["recommended"] == "int8"
    assert found["reasons"] == [
        "use int8: 0.50 of the time of fp32, agreement 0.9950. It changes the true mIoU by -0.0020 [-0.0030, -0.0010]"
    ]


def test_int8_that_is_no_faster_than_bf16_is_not() -> None:
    found = verdict([PLAIN, Candidate("bf16", row(0.999, 0.5, 0.0)), Candidate("int8", row(0.995, 0.49))], 0.99)
    assert found["recommended"] == "bf16"
    assert found["reasons"][0].startswith("int8 is not faster than bf16 here: 0.98 of its time.")


def test_a_file_that_answers_otherwise_is_not_however_fast() -> None:
    found = verdict([PLAIN, Candidate("int8", row(0.98, 0.1, None))], 0.99)
    assert found["recommended"] == "fp32"
    assert found["reasons"][0].startswith("int8 agrees with fp32 on 0.9800 of the pixels, less than 0.99: do not use")
    assert found["reasons"][1] == "use fp32"
