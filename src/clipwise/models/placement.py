"""Which residual blocks get a temporal module.

Sources: STM journal version, Table 9 (stages, first block); STW, Table 7 (stages); Deep Analysis, Table 6 (halves).
"""

from collections.abc import Callable, Sequence

__all__ = ["PLACEMENTS", "block_positions", "placed_in"]

Position = tuple[int, int]

PLACEMENTS = ("all", "first", "top", "bottom", "alternate")


def block_positions(blocks: Sequence[int]) -> list[Position]:
    """(stage, index in stage) of every block, from how many there are in stages 2, 3 …"""
    return [(stage, index) for stage, count in enumerate(blocks, start=2) for index in range(count)]


def placed_in(stages: Sequence[int], placement: str) -> Callable[[list[Position]], set[Position]]:
    """A function that picks blocks, given as (stage, index in stage), from a network's list of them.

    Args:
        stages: of 2 to 5 (conv2_x to conv5_x); blocks elsewhere get none.
        placement: of the blocks in those stages, ``all``, each stage's ``first``, the ``top`` half (nearest the
            output), the ``bottom`` half, or ``alternate``: every other, beginning with the first of each stage.

    Raises:
        ValueError: for a stage or placement that does not exist.
    """
    if not stages or not set(stages) <= {2, 3, 4, 5}:
        raise ValueError(f"stages must be some of 2, 3, 4, 5 (conv2_x to conv5_x), got {tuple(stages)}")
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}")

    def pick(positions: list[Position]) -> set[Position]:
        inside = [position for position in positions if position[0] in stages]
        half = len(inside) // 2
        chosen = {
            "all": inside,
            "first": [position for position in inside if position[1] == 0],
            "top": inside[half:],
            "bottom": inside[:half],
            "alternate": [position for position in inside if position[1] % 2 == 0],
        }
        return set(chosen[placement])

    return pick
