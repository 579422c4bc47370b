"""The turns among which the answered one is sought."""


def window(before, user, size, stop_at_own_turn):
    """Return the last `size` of `before` (the turns of the group before one of `user`, oldest first).

    `stop_at_own_turn`: only those after the last of `user`.
    """
    near = before[-size:] if size else []
    if stop_at_own_turn:
        last_own = max((place for place, turn in enumerate(near) if turn["user_id"] == user), default=-1)
        near = near[last_own + 1 :]
    return near
