from cloud_ingest.operators.watermark import NEVER_US, WatermarkSettings, after_readings, after_silence

SETTINGS = WatermarkSettings(allowed_lateness_us=10, idle_timeout_us=100)
NOW = 1_000_000_000


def test_follows_the_latest_reading_and_never_goes_back() -> None:
    one = after_readings(SETTINGS, NEVER_US, 500, NOW)
    assert one == 490
    assert after_readings(SETTINGS, one, 300, NOW) == 490


def test_a_clock_in_the_future_counts_as_a_minute_ahead() -> None:
    assert after_readings(SETTINGS, NEVER_US, 1 << 62, NOW) == NOW + 60_000_000 - 10


def test_silence_lets_the_wall_clock_take_over() -> None:
    assert after_silence(SETTINGS, 5, NOW - 99, NOW) == 5
    assert after_silence(SETTINGS, 5, NOW - 100, NOW) == NOW - 10
    assert after_silence(SETTINGS, NOW + 7, NOW - 100, NOW) == NOW + 7
