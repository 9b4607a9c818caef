"""What can be had without looking: actions drawn with fixed probabilities, whatever is seen.

    OMP_NUM_THREADS=1 python benchmarks/blind_play.py upndown [KEY=VALUE ...] --play NOOP+FIRE FIRE+UP UP=9+DOWN

Prints the mean return of ``evaluation.episodes`` episodes, its standard error and the mean length, of random play and
of each mixture: names of actions, with weights where they are not equal. What a mixture gains over random play and over
every constant action can be learned early; a game without such mixtures needs an agent that sees.
"""

from __future__ import annotations

import argparse

import numpy as np

from stormlit.analysis.evaluate import evaluate
from stormlit.config.compose import compose
from stormlit.envs import env_facts
from stormlit.errors import ConfigError, EnvironmentSetupError, nearest


class Mixture:
    """A policy that draws discrete actions with these probabilities."""

    def __init__(self, probabilities: np.ndarray, seed: int) -> None:
        self._probabilities, self._generator = probabilities, np.random.default_rng(seed)

    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        return self._generator.choice(len(self._probabilities), size=len(is_first), p=self._probabilities)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--play", nargs="*", default=[], metavar="ACTION[=WEIGHT]+...")
    args = parser.parse_args()
    files, overrides = ([w for w in args.words if ("=" in w) == wanted] for wanted in (False, True))
    try:
        config = compose(files, overrides)
        names = env_facts(config.env).action_meanings
        if not names:
            raise ConfigError(f"{config.env.game or config.env.id} has no actions with names to draw from")
        mixtures = {mixture: probabilities(mixture, names) for mixture in ["+".join(names), *args.play]}
    except (ConfigError, EnvironmentSetupError) as error:
        parser.error(str(error))
    for mixture, chances in mixtures.items():
        result = evaluate(
            mixture,
            lambda _, chances=chances: Mixture(chances, config.seed),  # type: ignore[misc]
            config.env,
            episodes=config.evaluation.episodes,
            num_envs=config.evaluation.num_envs,
            seed=config.seed,
        )
        length = np.mean([episode.length for episode in result.episodes])
        print(f"{mixture:40} {result.mean:8.1f} +- {result.standard_error:6.1f}   {length:6.0f} steps", flush=True)


def probabilities(mixture: str, names: list[str]) -> np.ndarray:
    """Of each action.  mixture: as the command takes it.  Raises ``ConfigError`` for what it is not."""
    weights = np.zeros(len(names))
    for word in mixture.split("+"):
        name, _, weight = word.partition("=")
        if name not in names:
            raise ConfigError(f"--play {mixture}: there is no action '{name}'{nearest(name, names)}; there are {names}")
        try:
            weights[names.index(name)] += float(weight or 1)
        except ValueError:
            raise ConfigError(f"--play {mixture}: '{weight}' is no weight: expected a number, as in {name}=2") from None
    if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise ConfigError(f"--play {mixture}: expected weights of at least 0, and one above it")
    return weights / weights.sum()


if __name__ == "__main__":
    main()
