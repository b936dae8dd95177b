"""Go back to the last healthy checkpoint, with a lower learning rate."""

from __future__ import annotations

import keras

from trainer.checkpoint import drop_checkpoints_after, restore_latest, save_checkpoint
from trainer.config import Config
from trainer.errors import TrainerError
from trainer.health_events import add_event, num_recoveries
from trainer.run_dir import RunDir
from trainer.schedules import build_schedule
from trainer.terminal import say


class Recovery:
    """What a training goes back to, and how often it did.

    The count is that of the run's `health.json`, so that a resumed training goes on with
    the learning rate that it had come down to.

    Args:
        config: Of the run.
        run: Whose checkpoints and `health.json` are used.
        model: Compiled, and its optimizer built.
        epoch_steps: Steps of an epoch, which the schedule counts in.
        first_step: Where the training begins; its state counts as healthy.
    """

    def __init__(
        self, config: Config, run: RunDir, model: keras.Model, epoch_steps: int, first_step: int
    ) -> None:
        self.healthy_step: int | None = None
        self._config = config
        self._run = run
        self._model = model
        self._epoch_steps = epoch_steps
        if config.gradients.on_error == "recover":
            self.healthy_step = first_step
            save_checkpoint(run.checkpoints, model, first_step)
            if num_recoveries(run):
                self._lower_rate()

    def go_back(self, error: TrainerError) -> int:
        """Restore the last healthy state after an error.

        Returns:
            The step to go on from.

        Raises:
            TrainerError: The error itself, if the config does not ask for it, or the run has
                gone back often enough.
        """
        count, most = num_recoveries(self._run), self._config.gradients.most_recoveries
        if self.healthy_step is None:
            raise error
        drop_checkpoints_after(self._run.checkpoints, self.healthy_step)
        if count >= most:
            raise type(error)(f"{error}; gave up after going back {count} times") from error
        checkpoint, damaged = restore_latest(self._run.checkpoints, self._model)
        for problem in damaged:
            say(f"warning: {problem}")
        self.healthy_step = checkpoint.step
        factor = self._config.gradients.recovery_factor ** (count + 1)
        add_event(
            self._run,
            self.healthy_step,
            "recovered",
            reason=str(error),
            learning_rate_factor=factor,
        )
        self._lower_rate()
        say(
            f"{error}\nback to step {self.healthy_step:,} with {factor:.3g} times the learning "
            f"rate (recovery {count + 1} of at most {most})"
        )
        return self.healthy_step

    def _lower_rate(self) -> None:
        config = self._config
        factor = config.gradients.recovery_factor ** num_recoveries(self._run)
        self._model.optimizer.learning_rate = build_schedule(
            config.schedule,
            config.optimizer.learning_rate * factor,
            steps_per_epoch=self._epoch_steps,
            total_steps=self._epoch_steps * config.fit.epochs,
        )
