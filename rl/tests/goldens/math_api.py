"""Writes math_api.json: calls to the reference `math_api` with what it answers.

    pip install mpmath && pip install --no-deps bfcl-eval==2026.3.23
    python math_api.py > math_api.json
"""

import json
import random

from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.math_api import MathAPI

draw = random.Random(20)


def number():
    kind = draw.random()
    if kind < 0.4:
        return draw.randint(-99, 99)
    if kind < 0.8:
        return round(draw.uniform(-1000, 1000), draw.randint(0, 4))
    return draw.choice([0, 0.5, 1.5, 2.5, -0.5, 2.675, 1e-9, 1e12])


def numbers():
    return [number() for _ in range(draw.randint(0, 6))]


SI = ["km", "m", "cm", "mm", "um", "nm", "mile"]
IMPERIAL = ["cm", "in", "m", "ft", "yd", "km", "miles", "kg", "lb", "celsius", "fahrenheit"]
ARGUMENTS = {
    "absolute_value": lambda: {"number": number()},
    "add": lambda: {"a": number(), "b": number()},
    "divide": lambda: {"a": number(), "b": number()},
    "imperial_si_conversion": lambda: {
        "value": number(),
        "unit_in": draw.choice(IMPERIAL),
        "unit_out": draw.choice(IMPERIAL),
    },
    "logarithm": lambda: {"value": abs(number()), "base": draw.choice([2, 10, 2.5]), "precision": draw.randint(2, 12)},
    "max_value": lambda: {"numbers": numbers()},
    "mean": lambda: {"numbers": numbers()},
    "min_value": lambda: {"numbers": numbers()},
    "multiply": lambda: {"a": number(), "b": number()},
    "percentage": lambda: {"part": number(), "whole": number()},
    "power": lambda: {"base": number(), "exponent": draw.choice([0, 1, 2, 3, 0.5, -1])},
    "round_number": lambda: {"number": number(), "decimal_places": draw.randint(-2, 3)},
    "si_unit_conversion": lambda: {"value": number(), "unit_in": draw.choice(SI), "unit_out": draw.choice(SI)},
    "square_root": lambda: {"number": number(), "precision": draw.randint(1, 12)},
    "standard_deviation": lambda: {"numbers": numbers()},
    "subtract": lambda: {"a": number(), "b": number()},
    "sum_values": lambda: {"numbers": numbers()},
}


def answer(name, arguments):
    try:
        result = getattr(MathAPI(), name)(**arguments).get("result")
    except (ZeroDivisionError, OverflowError):
        return None
    if result is None or isinstance(result, complex):
        return None
    result = float(result)
    return result if abs(result) < float("inf") else None


print("[")
lines = []
for name, draw_arguments in ARGUMENTS.items():
    for _ in range(25):
        arguments = draw_arguments()
        lines.append(json.dumps({"name": name, "arguments": arguments, "result": answer(name, arguments)}))
print(",\n".join(lines))
print("]")
