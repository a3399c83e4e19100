"""The names of a restorable model's views (see `linearard.model.restorable`)."""

ORIGINAL, STRETCHED, RESTORED = "original", "stretched", "restored"
#: Those that no training changes.
UNTRAINED = (ORIGINAL, STRETCHED)
