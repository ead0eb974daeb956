"""Time as a value. Instants are seconds since the epoch, or since a campaign's start (`_at`); durations are seconds (`_s`).

Deciding code never reads a clock: an instant arrives as an argument.
"""

HOUR_S = 3_600.0
DAY_S = 86_400.0
