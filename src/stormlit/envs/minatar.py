"""MinAtar's games, each episode of which begins alike, whatever the one before it ended with."""

from __future__ import annotations

from typing import Any

import gymnasium


class ForgetLastAction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """MinAtar repeats the last action by chance, at an episode's first step that of the episode before.

    An episode would then not follow from its seed, which is what going on with a run needs.
    """

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        game: Any = self.unwrapped
        game.game.last_action = 0
        return super().reset(**options)
