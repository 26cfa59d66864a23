"""The product graph around the network, as ONNX text: bytes to `pixel_values`, and `logits` to the mask of full size.

ONNX text is what `onnx.parser` reads; functions are inlined afterwards, so that a file holds plain operators alone.

The resize is Pillow's: one axis after the other, each with a filter that widens as the image shrinks, weights rounded
to 22 bits and sums to bytes. The upsampling is that of `segtune.segformer.upsampling`: linear down, then across, and
the class is picked at the full size. A `Loop` makes a band of rows at a time, of those classes alone that may win in
it, so that logits of full size exist nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from segtune.errors import UsageError

BAND = 2**21  # elements (classes x rows x width) of the logits that a band has at the full size: 8 MB
FILTERS = {2: 1, 3: 2}  # Pillow's number of a filter, and how far it reaches
ROUNDING = 1e-5  # share of the largest logit that an upsampled one may be off by


def product_text(
    *,
    image: tuple[str, str],
    channels: int,
    is_float: bool,
    num_logits: int,
    resize: str,
    factor: float,
    mean: list[float],
    std: list[float],
    temperature: float | None,
    opset: int,
    ir_version: int,
    resample: int,
    rows_first: bool,
) -> str:
    """The whole graph, with a node `segtune.network` for the network.

    Args:
        image: height and width as they are declared, numbers or names.
        is_float: the image is float32 rather than uint8.
        num_logits: of the network.
        resize: what `size_text` says; "" where images keep their size.
        factor, mean, std: an image becomes `(image * factor - mean) / std`.
        temperature: logits are divided by it for the confidence; None makes no confidence.
        resample: Pillow's number of the filter.
        rows_first: Pillow resizes the height first where it shrinks by more than twice what the width does.
    """
    kind, ids = "float" if is_float else "uint8", "uint8" if num_logits <= 256 else "int32"
    outputs = f"{ids}[{image[0]}, {image[1]}] mask"
    outputs += f", float[{image[0]}, {image[1]}] confidence" if temperature is not None else ""
    affine = {"factor": [factor], "mean": mean, "std": std}
    constants = "\n".join(
        f"        {name} = Constant <value = float[{len(values)}, 1, 1] {{{', '.join(f'{x:.9g}' for x in values)}}}> ()"
        for name, values in affine.items()
    )
    text = f"""
    <ir_version: {ir_version}, opset_import: ["" : {opset}, "segtune" : 1]>
    product ({kind}[{image[0]}, {image[1]}, {channels}] image) => ({outputs})
    {{
        zeros = Constant <value = int64[1] {{0}}> ()
        height = Shape <start = 0, end = 1> (image)
        width = Shape <start = 1, end = 2> (image)
        {resize}
        {_resized(kind, channels, rows_first) if resize else "planes = Transpose <perm = [2, 0, 1]> (image)"}
        numbers = Cast <to = 1> (planes)
{constants}
        rescaled = Mul (numbers, factor)
        centred = Sub (rescaled, mean)
        normalised = Div (centred, std)
        pixel_values = Unsqueeze (normalised, zeros)
        logits = segtune.network (pixel_values)
        {_decision(num_logits, ids, temperature)}
    }}
    {_positions(opset)}
    """
    return text + (_resample(opset, FILTERS[resample], is_float) if resize else "")


def size_text(processor_size: Mapping[str, int] | None, divisor: int) -> str:
    """Lines that make `new_height` and `new_width`, int64[1], from `height` and `width`; "" where these are the same.

    Args:
        processor_size: `SegformerImageProcessor.size`; None where it does not resize.
        divisor: its `size_divisor`.
    """
    if processor_size is None and divisor == 1:
        return ""
    lines = _target(processor_size)
    return f"""{lines}
        divisor = Constant <value = int64[1] {{{divisor}}}> ()
        ones = Constant <value = int64[1] {{1}}> ()
        {_multiple("height")}
        {_multiple("width")}"""


def _multiple(side: str) -> str:
    return f"""{side}_up = Add (wanted_{side}, divisor)
        {side}_above = Sub ({side}_up, ones)
        {side}_steps = Div ({side}_above, divisor)
        new_{side} = Mul ({side}_steps, divisor)"""


def _target(size: Mapping[str, int] | None) -> str:
    """`wanted_height` and `wanted_width`, as `SegformerImageProcessor.target_size` has them before its divisor."""
    if size is None:
        return "wanted_height = Identity (height)\n        wanted_width = Identity (width)"
    if "height" in size:
        return f"""wanted_height = Constant <value = int64[1] {{{size["height"]}}}> ()
        wanted_width = Constant <value = int64[1] {{{size["width"]}}}> ()"""
    if "shortest_edge" in size and "longest_edge" not in size:
        return f"""short = Min (height, width)
        long = Max (height, width)
        edge = Constant <value = int64[1] {{{size["shortest_edge"]}}}> ()
        area = Mul (edge, long)
        longer = Div (area, short)
        is_short = Equal (edge, short)
        is_low = Less (height, width)
        low_height = Where (is_low, edge, longer)
        low_width = Where (is_low, longer, edge)
        wanted_height = Where (is_short, height, low_height)
        wanted_width = Where (is_short, width, low_width)"""
    raise UsageError(
        f"the image processor's size {dict(size)} is not known to export: "
        "a height and a width, or a shortest_edge, can be built into a file"
    )


def _resized(kind: str, channels: int, rows_first: bool) -> str:
    """`planes` (C, h, w), the image at `new_height` and `new_width`."""
    if not rows_first:
        return """columns = Transpose <perm = [1, 0, 2]> (image)
        half = segtune.resample (columns, new_width)
        turned = Transpose <perm = [1, 0, 2]> (half)
        whole = segtune.resample (turned, new_height)
        planes = Transpose <perm = [2, 0, 1]> (whole)"""
    return f"""shrinks = Less (new_height, height)
        less_rows = Sub (height, new_height)
        less_columns = Sub (width, new_width)
        twice = Add (less_columns, less_columns)
        steeper = Greater (less_rows, twice)
        rows_first = And (shrinks, steeper)
        down_first = Squeeze (rows_first)
        columns = If (down_first) <
            then_branch = as_rows () => ({kind}[a, b, {channels}] lines_1) {{
                lines_1 = Identity (image)
            }},
            else_branch = as_columns () => ({kind}[a, b, {channels}] lines_2) {{
                lines_2 = Transpose <perm = [1, 0, 2]> (image)
            }}
        >
        size_1 = Where (down_first, new_height, new_width)
        size_2 = Where (down_first, new_width, new_height)
        half = segtune.resample (columns, size_1)
        turned = Transpose <perm = [1, 0, 2]> (half)
        whole = segtune.resample (turned, size_2)
        planes = If (down_first) <
            then_branch = from_columns () => ({kind}[{channels}, a, b] planes_1) {{
                planes_1 = Transpose <perm = [2, 1, 0]> (whole)
            }},
            else_branch = from_rows () => ({kind}[{channels}, a, b] planes_2) {{
                planes_2 = Transpose <perm = [2, 0, 1]> (whole)
            }}
        >"""


def _resample(opset: int, reach: int, is_float: bool) -> str:
    """A function that brings the first axis of `(n, a, b)` to `size`, int64[1], with Pillow's triangle or cubic."""
    in_bytes = """
        weights = Cast <to = 6> (fixed)
        start = Constant <value = int32 {2097152}> ()"""
    to_bytes = """
        bottom = Constant <value = int32 {0}> ()
        unit = Constant <value = int32 {4194304}> ()
        top = Constant <value = int32 {255}> ()
        positive = Max (total, bottom)
        levels = Div (positive, unit)
        bounded = Min (levels, top)
        y = Cast <to = 2> (bounded)"""
    in_numbers = """
        weights = Identity (share)
        start = Constant <value = double {0.0}> ()"""
    kind, number = ("double", 11) if is_float else ("int32", 6)
    return f"""
    <domain: "segtune", opset_import: ["" : {opset}]>
    resample (x, size) => (y)
    {{
        none = Constant <value = int64 {{0}}> ()
        next = Constant <value = int64 {{1}}> ()
        axis_0 = Constant <value = int64[1] {{0}}> ()
        axis_1 = Constant <value = int64[1] {{1}}> ()
        axes_12 = Constant <value = int64[2] {{1, 2}}> ()
        n_1 = Shape <start = 0, end = 1> (x)
        n = Squeeze (n_1)
        m = Squeeze (size)
        wide = Max (n, m)
        reach = Constant <value = int64 {{{reach}}}> ()
        two = Constant <value = int64 {{2}}> ()
        twice_m = Mul (two, m)
        support = Mul (reach, wide)
        support_2 = Mul (two, support)
        support_up = Add (support, m)
        support_1 = Sub (support_up, next)
        side = Div (support_1, m)
        sides = Mul (two, side)
        many = Add (sides, next)
        is_same = Equal (n, m)
        taps = Where (is_same, next, many)
        places = Range (none, m, next)
        places_2 = Mul (two, places)
        odd = Add (places_2, next)
        centre = Mul (odd, n)
        left = Sub (centre, support_2)
        left_up = Add (left, m)
        left_i = Div (left_up, twice_m)
        from_left = Max (left_i, none)
        first = Where (is_same, places, from_left)
        steps = Range (none, taps, next)
        column = Unsqueeze (steps, axis_1)
        index = Add (column, first)
        is_inside = Less (index, n)
        index_2 = Mul (two, index)
        index_odd = Add (index_2, next)
        position = Mul (index_odd, m)
        distance = Sub (position, centre)
        away = Abs (distance)
        {_cubic() if reach == 2 else _triangle(is_float)}
        {in_numbers if is_float else in_bytes}
        last = Sub (n, next)
        rows = Min (index, last)
        rest = Shape <start = 1> (x)
        shape = Concat <axis = 0> (size, rest)
        begin = Expand (start, shape)
        yes = Constant <value = bool {{1}}> ()
        total = Loop <body = tap (int64 t, bool go, {kind}[n, a, b] so_far) => (bool go_on, {kind}[n, a, b] more) {{
            go_on = Identity (go)
            of_tap = Gather <axis = 0> (rows, t)
            picked = Gather <axis = 0> (x, of_tap)
            values = Cast <to = {number}> (picked)
            w_1 = Gather <axis = 0> (weights, t)
            w_3 = Unsqueeze (w_1, axes_12)
            part = Mul (values, w_3)
            more = Add (so_far, part)
        }}> (taps, yes, begin)
        {"y = Cast <to = 1> (total)" if is_float else to_bytes}
    }}
    """


def _triangle(is_float: bool) -> str:
    """`fixed`, the weight of each tap in 2^-22, or `share`, as a number: of integers, so that they are Pillow's.

    `away` is a distance of centres, in 1 / (2 m) of a pixel. The long division has two steps of 11 bits, which stay
    within the 32 bits that some engines make of int64.
    """
    division = """
        bits = Constant <value = int64 {2048}> ()
        high_w = Mul (weight, bits)
        high = Div (high_w, sum)
        high_part = Mul (high, sum)
        rest_1 = Sub (high_w, high_part)
        low_w = Mul (rest_1, bits)
        low = Div (low_w, sum)
        low_part = Mul (low, sum)
        rest_2 = Sub (low_w, low_part)
        rest_twice = Mul (rest_2, two)
        sum_twice = Mul (sum, two)
        rest_up = Add (rest_twice, sum)
        round = Div (rest_up, sum_twice)
        high_bits = Mul (high, bits)
        both = Add (high_bits, low)
        fixed = Add (both, round)"""
    quotient = """
        weight_d = Cast <to = 11> (weight)
        sum_d = Cast <to = 11> (sum)
        share = Div (weight_d, sum_d)"""
    return f"""
        falls = Sub (support_2, away)
        above_none = Max (falls, none)
        inside = Cast <to = 7> (is_inside)
        weight = Mul (above_none, inside)
        sum = ReduceSum <keepdims = 1> (weight, axis_0)
        {quotient if is_float else division}"""


def _cubic() -> str:
    """The same of Pillow's cubic, of float64."""
    return """
        zero = Constant <value = double {0.0}> ()
        half = Constant <value = double {0.5}> ()
        one = Constant <value = double {1.0}> ()
        a = Constant <value = double {-0.5}> ()
        end = Constant <value = double {2.0}> ()
        near_3 = Constant <value = double {1.5}> ()
        near_2 = Constant <value = double {2.5}> ()
        far_2 = Constant <value = double {5.0}> ()
        far_1 = Constant <value = double {8.0}> ()
        far_0 = Constant <value = double {4.0}> ()
        away_d = Cast <to = 11> (away)
        wide_2 = Mul (two, wide)
        wide_d = Cast <to = 11> (wide_2)
        d = Div (away_d, wide_d)
        inner_1 = Mul (near_3, d)
        inner_2 = Sub (inner_1, near_2)
        inner_3 = Mul (inner_2, d)
        inner_4 = Mul (inner_3, d)
        inner = Add (inner_4, one)
        outer_1 = Sub (d, far_2)
        outer_2 = Mul (outer_1, d)
        outer_3 = Add (outer_2, far_1)
        outer_4 = Mul (outer_3, d)
        outer_5 = Sub (outer_4, far_0)
        outer = Mul (outer_5, a)
        is_inner = Less (d, one)
        is_outer = Less (d, end)
        tail = Where (is_outer, outer, zero)
        raw = Where (is_inner, inner, tail)
        inside = Cast <to = 11> (is_inside)
        weight = Mul (raw, inside)
        sum = ReduceSum <keepdims = 1> (weight, axis_0)
        share = Div (weight, sum)
        scale = Constant <value = double {4194304.0}> ()
        scaled = Mul (share, scale)
        sign = Sign (scaled)
        shift = Mul (sign, half)
        fixed = Add (scaled, shift)"""


def _positions(opset: int) -> str:
    """A function: which two of `size` inputs make each of `target` outputs, and the share of the second."""
    return f"""
    <domain: "segtune", opset_import: ["" : {opset}]>
    positions (size, target) => (before, after, share)
    {{
        half = Constant <value = float {{0.5}}> ()
        least = Constant <value = float {{0.0}}> ()
        none = Constant <value = int64 {{0}}> ()
        next = Constant <value = int64 {{1}}> ()
        next_1 = Constant <value = int64[1] {{1}}> ()
        size_f = Cast <to = 1> (size)
        target_f = Cast <to = 1> (target)
        scale = Div (size_f, target_f)
        target_0 = Squeeze (target)
        places = Range (none, target_0, next)
        places_f = Cast <to = 1> (places)
        middle = Add (places_f, half)
        scaled = Mul (middle, scale)
        moved = Sub (scaled, half)
        at = Max (moved, least)
        whole = Cast <to = 7> (at)
        last = Sub (size, next_1)
        before = Min (whole, last)
        beyond = Add (before, next_1)
        after = Min (beyond, last)
        before_f = Cast <to = 1> (before)
        share = Sub (at, before_f)
    }}
    """


def _decision(num_logits: int, ids: str, temperature: float | None) -> str:
    """`mask` and `confidence` from `logits` (1, K, h, w), in bands of `height`."""
    scans = f"{ids}[rows, columns] strip"
    scans += ", float[rows, columns] probability" if temperature is not None else ""
    outputs = "strips, probabilities" if temperature is not None else "strips"
    joined = _joined("strips", "mask")
    joined += _joined("probabilities", "confidence") if temperature is not None else ""
    return f"""
        axis_0 = Constant <value = int64[1] {{0}}> ()
        axis_1 = Constant <value = int64[1] {{1}}> ()
        axis_2 = Constant <value = int64[1] {{2}}> ()
        minus_1 = Constant <value = int64[1] {{-1}}> ()
        none = Constant <value = int64 {{0}}> ()
        next = Constant <value = int64 {{1}}> ()
        k_1 = Shape <start = 1, end = 2> (logits)
        h_1 = Shape <start = 2, end = 3> (logits)
        above, below, share = segtune.positions (h_1, height)
        absolute = Abs (logits)
        largest = ReduceMax <keepdims = 0> (absolute)
        part = Constant <value = float {{{ROUNDING}}}> ()
        rounding = Mul (largest, part)
        budget = Constant <value = int64[1] {{{BAND}}}> ()
        line = Mul (k_1, width)
        fitting = Div (budget, line)
        at_least_1 = Max (fitting, axis_1)
        step_1 = Min (at_least_1, height)
        padded = Add (height, step_1)
        padded_1 = Sub (padded, axis_1)
        bands_1 = Div (padded_1, step_1)
        bands = Squeeze (bands_1)
        step = Squeeze (step_1)
        within = Range (none, step, next)
        last_row = Sub (height, axis_1)
        yes = Constant <value = bool {{1}}> ()
        {outputs} = Loop <body = band (int64 number, bool go) => (bool go_on, {scans}) {{
            go_on = Identity (go)
            top = Mul (number, step_1)
            rows_from_top = Add (within, top)
            rows_of_band = Min (rows_from_top, last_row)
            upper = Gather (above, rows_of_band)
            lower = Gather (below, rows_of_band)
            weight = Gather (share, rows_of_band)
            first = Gather (upper, axis_0)
            last = Gather (lower, minus_1)
            end = Add (last, axis_1)
            lines = Slice (logits, first, end, axis_2)
            {_candidates(num_logits, temperature)}
            upper_0 = Sub (upper, first)
            lower_0 = Sub (lower, first)
            from = Gather <axis = 2> (some, upper_0)
            to = Gather <axis = 2> (some, lower_0)
            change = Sub (to, from)
            weight_1 = Unsqueeze (weight, axis_1)
            moved = Mul (change, weight_1)
            mixed = Add (from, moved)
            shape = Shape <start = 0, end = 3> (mixed)
            sizes = Concat <axis = 0> (shape, width)
            full = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (mixed, , , sizes)
            {_pick(num_logits, ids, pruned=temperature is None)}
            {_probability(num_logits, temperature)}
        }}> (bands, yes)
        {joined}"""


def _joined(strips: str, name: str) -> str:
    """Strips `(bands, rows, W)` one below the other, without what the last one has beyond the image."""
    return f"""
        {name}_shape = Concat <axis = 0> (minus_1, width)
        {name}_rows = Reshape ({strips}, {name}_shape)
        {name} = Slice ({name}_rows, axis_0, height, axis_0)"""


def _candidates(num_logits: int, temperature: float | None) -> str:
    """`some` of `lines`: the classes that no other one is above at all four corners of each cell; and which, `found`.

    All of them where a confidence is asked for, which every class has a part in.
    """
    if num_logits == 1 or temperature is not None:
        return "some = Identity (lines)"
    return """axes_023 = Constant <value = int64[3] {0, 2, 3}> ()
            negative = Neg (lines)
            high_of_negative = MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (negative)
            low = Neg (high_of_negative)
            high = MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (lines)
            sure = ReduceMax <keepdims = 1> (low, axis_1)
            bound = Sub (sure, rounding)
            stays_below = Less (high, bound)
            may_win = Not (stays_below)
            may_win_f = Cast <to = 1> (may_win)
            wins = ReduceMax <keepdims = 0> (may_win_f, axes_023)
            found_1 = NonZero (wins)
            found = Squeeze (found_1, axis_0)
            some = Gather <axis = 1> (lines, found)"""


def _pick(num_logits: int, ids: str, *, pruned: bool) -> str:
    """`strip`, the classes of `full` (1, K, rows, W)."""
    number = {"uint8": 2, "int32": 6}[ids]
    if num_logits == 1:
        return f"""above_zero = Constant <value = float {{0.0}}> ()
            is_one = Greater (full, above_zero)
            ids_4 = Cast <to = {number}> (is_one)
            axes_01 = Constant <value = int64[2] {{0, 1}}> ()
            strip = Squeeze (ids_4, axes_01)"""
    return f"""best_1 = ArgMax <axis = 1, keepdims = 0> (full)
            best = Squeeze (best_1, axis_0)
            ids = {"Gather (found, best)" if pruned else "Identity (best)"}
            strip = Cast <to = {number}> (ids)"""


def _probability(num_logits: int, temperature: float | None) -> str:
    """`probability` of the picked class, where there is a temperature."""
    if temperature is None:
        return ""
    start = f"""temperature = Constant <value = float {{{temperature:.9g}}}> ()
            tempered = Div (full, temperature)"""
    if num_logits == 1:
        return f"""{start}
            margin = Abs (tempered)
            probability_4 = Sigmoid (margin)
            probability = Squeeze (probability_4, axes_01)"""
    return f"""{start}
            highest = ReduceMax <keepdims = 0> (tempered, axis_1)
            total = ReduceLogSumExp <keepdims = 0> (tempered, axis_1)
            log_probability = Sub (highest, total)
            probability_3 = Exp (log_probability)
            probability = Squeeze (probability_3, axis_0)"""
