"""The integers and values of a block in plain Python, written from docs/wire-format.md; part of oracle_block.py."""

import math
import struct
from collections.abc import Callable
from fractions import Fraction

MASK = (1 << 64) - 1
NAN = 0x7FF8000000000000
MAGIC = 1.5 * 2.0**52
TAPS = 16


class OracleError(Exception):
    """The bytes are not a valid block."""


def require(condition: bool, why: str) -> None:
    if not condition:
        raise OracleError(why)


def signed(number: int, bits: int = 64) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if bits and number >> (bits - 1) else number


def double(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


def bits_of(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


class Bytes:
    """Bytes that are taken one after another."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        require(count <= len(self.data), "a section ends early")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def varint(self, most: int = MASK) -> int:
        number = 0
        for index in range(10):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                require(byte != 0 or index == 0, "a varint is too long")
                require(number <= most, "a varint is too large")
                return number
        raise OracleError("a varint does not end")

    def number(self) -> int:
        folded = self.varint()
        return (folded >> 1) ^ -(folded & 1)

    def finish(self) -> None:
        require(not self.data, "a section goes on")


class Bits:
    """A bit stream as one big number."""

    def __init__(self, section: bytes) -> None:
        self.stream = int.from_bytes(section, "little")
        self.left = 8 * len(section)

    def take(self, width: int) -> int:
        require(width <= self.left, "a section ends early")
        taken = self.stream & ((1 << width) - 1)
        self.stream >>= width
        self.left -= width
        return taken

    def finish(self) -> None:
        require(self.left < 8, "a section goes on")
        require(self.stream == 0, "unused bits are not zero")


class Coder:
    """The range decoder. A chance is a list: of a yes in 1/65536, and answers seen."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.low, self.high, self.code = 0, 0xFFFFFFFF, 0
        for _ in range(4):
            self.code = self.code << 8 | self.byte()

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def take(self, chance: list[int]) -> int:
        yes, seen = chance
        middle = self.low + ((self.high - self.low) * yes >> 16)
        answer = int(self.code <= middle)
        if answer:
            self.high = middle
        else:
            self.low = middle + 1
        target = 65536 - 32 if answer else 32
        rate = 131072 // (2 * seen + 3) >> 2
        chance[0] = yes + ((target - yes) * rate >> 14)
        chance[1] = min(seen + 1, 127)
        while self.low >> 24 == self.high >> 24:
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = self.high << 8 & 0xFFFFFFFF | 0xFF
            self.code = self.code << 8 & 0xFFFFFFFF | self.byte()
        return answer

    def finish(self) -> None:
        require(self.at >= len(self.data), "a section goes on")


class Residuals:
    """The entropy-coded residuals of a section."""

    def __init__(self, section: Bytes) -> None:
        level = section.take(1)[0]
        require(level < 120, "the first mean is too large")
        self.mean = level if level < 2 else (2 + (level & 1)) << min(level // 2 - 1, 59)
        self.coder = Coder(section.take(section.varint()))
        self.noise = Bits(section.take(len(section.data)))
        up = [36000, 23000, 16000] + [13000] * 9
        down = [29500] + [32000] * 11
        self.up = [[[chance, 3] for chance in up] for _ in range(120)]
        self.down = [[[chance, 3] for chance in down] for _ in range(120)]
        self.below = [[[chance, 3] for chance in (27500, 30000, 30000)] for _ in range(12)]
        self.negative = [[[32768, 3] for _ in range(3)] for _ in range(3)]
        self.sign = 0

    def bits(self, level: int, expected: int) -> int:
        if expected == 0 or self.coder.take(self.up[level][0]):
            bits = expected
            while bits < 64 and self.coder.take(self.up[level][min(bits - expected + 1, 11)]):
                bits += 1
            return bits
        bits = expected - 1
        while bits > 0 and self.coder.take(self.down[level][min(expected - bits - 1, 11)]):
            bits -= 1
        return bits

    def take(self) -> int:
        mean = self.mean + (self.mean >> 2) + 5
        size = mean.bit_length()
        expected = max(size - 4, 0)
        bits = self.bits(2 * size - 6 + (mean >> (size - 2) & 1), expected)
        magnitude, negative = min(bits, 1), 0
        if bits:
            negative = self.coder.take(self.negative[self.sign][min(bits, 3) - 1])
            below = self.below[min(max(bits + 8 - expected, 0), 11)]
            if bits > 1:
                first = self.coder.take(below[0])
                magnitude = 2 | first
                if bits > 2:
                    magnitude = magnitude << 1 | self.coder.take(below[1 + first])
                    magnitude = magnitude << (bits - 3) | self.noise.take(bits - 3)
        self.mean += min(magnitude, 1 << 56) - (self.mean >> 4)
        self.sign = 0 if magnitude == 0 else 1 + negative
        return -magnitude if negative else magnitude

    def finish(self) -> None:
        self.coder.finish()
        self.noise.finish()


def divide(one: float, other: float) -> float:
    """As the standard for floating point has it, without exceptions."""
    if other != 0.0 and math.isfinite(one):
        return one / other
    return math.nan if (other == 0.0 and one == 0.0) or math.isnan(one) else math.copysign(math.inf, one)


class Predictor:
    """Guesses the next integer from those before."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = self.before = self.quick = self.slow = self.mean = 0.0
        self.seen = self.power = 1.0
        self.weights = [0.0] * TAPS
        self.steps = [0.0] * TAPS
        self.guesses = [0.0] * 6
        self.errors = [1.0] * 6

    def predict(self) -> int:
        sums = [0.0] * 4
        for k in range(TAPS):
            sums[k % 4] += self.weights[k] * self.steps[k]
        filtered = (sums[0] + sums[1]) + (sums[2] + sums[3])
        line = 2.0 * self.last - self.before
        self.guesses = [self.last, line, self.quick, self.slow, self.mean, self.last + filtered]
        weight = total = 0.0
        for guess, error in zip(self.guesses, self.errors, strict=True):
            inverse = divide(1.0, error + 0.01)
            trust = (inverse * inverse) * (inverse * inverse)
            weight += trust
            total += trust * guess
        guess = divide(total, weight)
        near = round(guess) if abs(guess) < 2.0**51 else 0
        return self.first + near

    def learn(self, actual: int) -> None:
        value = float(signed(actual - self.first))
        for k, guess in enumerate(self.guesses):
            miss = value - guess
            self.errors[k] += (miss * miss - self.errors[k]) * 0.06
        gain = divide(0.02, self.power / TAPS + 1.0) * (value - self.guesses[5])
        for k in range(TAPS):
            self.weights[k] += gain * self.steps[k]
        step = value - self.last
        self.power += step * step - self.steps[0] * self.steps[0]
        self.steps = [*self.steps[1:], step]
        self.before, self.last = self.last, value
        self.quick += (value - self.quick) * 0.5
        self.slow += (value - self.slow) * 0.15
        self.seen += 1.0
        self.mean += (value - self.mean) / min(self.seen, 200.0)


def unpack(section: Bytes, count: int) -> list[int]:
    """Groups of packed numbers; as they were folded."""
    numbers: list[int] = []
    while len(numbers) < count:
        size = min(128, count - len(numbers))
        head = section.take(1)[0]
        width = head & 0x7F
        require(width <= 64, "too wide")
        stream = Bits(section.take((width * size + 7) // 8))
        group = [stream.take(width) for _ in range(size)]
        stream.finish()
        if head & 0x80:
            patches, high = section.take(2)
            require(0 < patches < size and high > 0 and width + high <= 64, "impossible patches")
            positions = list(section.take(patches))
            require(sorted(set(positions)) == positions and positions[-1] < size, "patches out of order")
            stream = Bits(section.take((high * patches + 7) // 8))
            for position in positions:
                group[position] |= stream.take(high) << width
            stream.finish()
        numbers += group
    return numbers


def unfold(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


def symbols(section: Bytes, first: int, count: int) -> list[int]:
    kinds = section.take(1)[0]
    require(2 <= kinds <= 32, "an impossible number of symbols")
    depth = (kinds - 1).bit_length()
    trees = [[[32768, 3] for _ in range(1 << depth)] for _ in range(kinds)]
    coder = Coder(section.take(len(section.data)))
    last = 0
    found = []
    for _ in range(count):
        node = 1
        for _ in range(depth):
            node = node << 1 | coder.take(trees[last][node])
        last = node - (1 << depth)
        require(last < kinds, "no such symbol")
        found.append(signed(first + last))
    coder.finish()
    return found


def integers(data: bytes, count: int) -> list[int]:
    """A section of integers, of which there is at least one."""
    section = Bytes(data)
    if count == 1:
        only = section.number()
        section.finish()
        return [only]
    scheme = section.take(1)[0]
    require(scheme <= 8, "unknown scheme")
    first = section.number()
    if scheme == 0:
        section.finish()
        return [first] * count
    if scheme == 8:
        return symbols(section, first, count)
    second = section.number() if scheme in {2, 3, 6} else 0
    known = {1: 0, 2: 1, 3: 2, 4: 0, 5: 1, 6: 2, 7: 1}[scheme]
    if scheme == 7:
        return predicted(section, first, count)
    if scheme < 4:
        packed = unpack(section, count - known)
        section.finish()
        residuals = packed if scheme == 1 else [unfold(number) for number in packed]
    else:
        coded = Residuals(section)
        residuals = [coded.take() for _ in range(count - known)]
        coded.finish()
    if known == 0:
        return [signed(first + residual) for residual in residuals]
    found = [first] if known == 1 else [first, signed(first + second)]
    step = second
    for residual in residuals:
        if scheme == 2:
            step = second + residual
        elif scheme == 5:
            step = residual
        else:
            step += residual
        found.append(signed(found[-1] + step))
    return found


def predicted(section: Bytes, first: int, count: int) -> list[int]:
    coded = Residuals(section)
    predictor = Predictor(first)
    found = [first]
    while len(found) < count:
        found.append(signed(predictor.predict() + coded.take()))
        predictor.learn(found[-1])
    coded.finish()
    return found


def single(value: float) -> float:
    """Round to binary32; beyond its largest number there is infinity."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def single_bits(integer: int) -> int:
    pattern = signed(integer, 32)
    pattern = (pattern ^ (0x7FFFFFFF if pattern < 0 else 0)) & 0xFFFFFFFF
    if pattern & 0x7FFFFFFF > 0x7F800000:
        return NAN
    return bits_of(struct.unpack("<f", struct.pack("<I", pattern))[0])


def quotient(integer: int, divisor: int) -> float:
    """Divide what a double holds of the integer, rounding once."""
    number = float(integer)
    return float(Fraction(number) / divisor)


def take_form(section: Bytes) -> tuple[Callable[[int], int], bool]:  # noqa: PLR0911 - one for each kind
    """The function from an integer to the bits of a value, and whether exceptions follow."""
    head = section.take(1)[0]
    number = head & 0x7F
    excepted = head >= 0x80
    if number < 80:
        divisor = (1, 2, 4, 5, 3)[number // 16] * 10 ** (number % 16)
        return lambda integer: bits_of(quotient(integer, divisor)), excepted
    if number < 96:
        return lambda integer: bits_of(quotient(integer, 8 << (number - 80))), excepted
    if number < 107:
        return lambda integer: bits_of(single(quotient(integer, 10 ** (number - 96)))), excepted
    if number == 112:
        return lambda integer: (integer ^ (MASK >> 1 if integer < 0 else 0)) & MASK, excepted
    if number == 113:
        return single_bits, excepted
    require(114 <= number <= 117, "unknown form")
    scale = float(struct.unpack("<f", section.take(4))[0] if number % 2 else struct.unpack("<d", section.take(8))[0])
    require(math.isfinite(scale) and scale > 0, "an impossible scale")
    if number < 116:
        return lambda integer: bits_of(float(integer) * scale), excepted
    return lambda integer: bits_of(single(float(integer) * scale)), excepted


def take_exceptions(section: Bytes, count: int) -> list[tuple[int, int]]:
    """Places and distances."""
    found: list[tuple[int, int]] = []
    at = 0
    for _ in range(section.varint(count)):
        at += section.varint(count)
        length = section.varint(2 * count)
        same = length & 1
        length = (length >> 1) + 1
        require(at + length <= count, "an exception behind the last value")
        found.extend((at + k, section.varint() if k == 0 or not same else 0) for k in range(length))
        at += length
    return found


def numbers(data: bytes, count: int) -> list[int]:
    section = Bytes(data)
    join, excepted = take_form(section)
    exceptions = take_exceptions(section, count) if excepted else []
    values = [join(integer) for integer in integers(section.data, count)]
    before = NAN
    for at, distance in exceptions:
        before = (values[at] + unfold(distance)) & MASK if distance else before
        values[at] = before
    return values


def dictionary(data: bytes, count: int) -> list[int]:
    section = Bytes(data)
    size = section.varint(count)
    require(size > 0, "an empty dictionary")
    entries = numbers(section.take(section.varint()), size)
    places = integers(section.data, count)
    require(all(0 <= place < size for place in places), "no such entry")
    return [entries[place] for place in places]
