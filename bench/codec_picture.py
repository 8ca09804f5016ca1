"""A picture of codecs as plain SVG: compression ratio over encoding speed, both on logarithmic axes."""

import math
from html import escape

WIDTH, HEIGHT = 820, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 30, 60
TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
OURS, PEERS = "#0b6e99", "#9a6b3f"


def draw(points: list[tuple[str, float, float]]) -> str:
    """Return the SVG text for points of (name, million readings a second, ratio); ours begin with "forebay"."""
    speeds = [max(speed, 0.1) for _, speed, _ in points]
    ratios = [ratio for _, _, ratio in points]
    x_range, y_range = (min(speeds) / 1.5, max(speeds) * 1.5), (min(ratios) / 1.3, max(ratios) * 1.3)

    def place(number: float, low_high: tuple[float, float], begin: float, end: float) -> float:
        low, high = map(math.log, low_high)
        return begin + (math.log(number) - low) / (high - low) * (end - begin)

    def x_of(speed: float) -> float:
        return place(max(speed, 0.1), x_range, LEFT, WIDTH - RIGHT)

    def y_of(ratio: float) -> float:
        return place(ratio, y_range, HEIGHT - BOTTOM, TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in TICKS:
        if x_range[0] <= tick <= x_range[1]:
            x = x_of(tick)
            parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#ddd"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick}</text>')
        if y_range[0] <= tick <= y_range[1]:
            y = y_of(tick)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">million readings encoded a second, one core</text>'
    )
    parts.append(
        f'<text x="18" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 18 {HEIGHT / 2})">'
        "times smaller than 16 bytes a reading</text>"
    )
    for name, speed, ratio in points:
        colour = OURS if name.startswith("forebay") else PEERS
        x, y = x_of(speed), y_of(ratio)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
