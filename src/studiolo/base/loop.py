"""The plain training loop that the parts of the base model share: it resumes, logs, decays and averages."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from studiolo.store.files import atomic_path

FALL = 0.3
"""The part of a run, at its end, in which the learning rate falls."""


class Loop:
    """AdamW over `modules`: warm-up, a plateau, a linear fall to zero; an EMA, a JSON-lines log and
    checkpoints.

    The plateau makes a longer run out of a shorter one: raise `total` before the fall begins and go on (Hu
    et al. 2024, "warm-up, stable, decay").

    Args:
        run: folder of `state.pt` and `log.jsonl`; a state found there is gone on from. modules: what is
        trained, by name. learning_rate: after a warm-up of `warmup` steps. total: optimizer steps at which
        the learning rate reaches zero. ema_decay: of the averaged copy `ema`, with the usual warm-up
        min(decay, (1 + n) / (10 + n)); 0 keeps none.
    """

    def __init__(
        self,
        run: Path,
        modules: dict[str, nn.Module],
        learning_rate: float,
        total: int,
        warmup: int = 200,
        ema_decay: float = 0.0,
        every: int = 500,
    ) -> None:
        self.run, self.module, self.total, self.every, self.ema_decay = (
            run,
            nn.ModuleDict(modules),
            total,
            every,
            ema_decay,
        )
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda n: min(1.0, (n + 1) / warmup, max(0.0, (total - n) / (FALL * total))),
        )
        self.ema = copy.deepcopy(self.module).requires_grad_(False).eval() if ema_decay else self.module
        self.step, self._sums, self._since = 0, {}, time.monotonic()  # type: ignore[var-annotated]
        run.mkdir(parents=True, exist_ok=True)
        if (run / "state.pt").exists():
            self._restore()

    def steps(self, minutes: float) -> Iterator[int]:
        """Step numbers until `total` or until the clock has run out; the state is saved at the end either
        way."""
        deadline = time.monotonic() + 60 * minutes
        while self.step < self.total and time.monotonic() < deadline:
            yield self.step
        self.save()

    def update(self, loss: Tensor, **logged: Tensor) -> None:
        """One optimizer step on `loss`; means of the logged values are written every `every` // 5 steps."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        if self.ema_decay:
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            for mean, new in zip(self.ema.parameters(), self.module.parameters(), strict=True):
                mean.data.lerp_(new.data, 1 - decay)
        for name, value in {"loss": loss, "grad_norm": norm, **logged}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        if self.step % (self.every // 5) == 0:
            self._log()
        if self.step % self.every == 0:
            self.save()

    def _log(self) -> None:
        count, now = self.every // 5, time.monotonic()
        means = {name: round(total / count, 5) for name, total in self._sums.items()}
        row = {
            "step": self.step,
            **means,
            "lr": self.schedule.get_last_lr()[0],
            "s_per_step": (now - self._since) / count,
        }
        with open(self.run / "log.jsonl", "a") as file:
            print(json.dumps(row), file=file)
        print(json.dumps(row), flush=True)
        self._sums, self._since = {}, now

    def save(self) -> None:
        state = {
            "step": self.step,
            "module": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with atomic_path(self.run / "state.pt") as temporary:
            torch.save(state, temporary)

    def _restore(self) -> None:
        state = torch.load(self.run / "state.pt", weights_only=True)
        self.step = state["step"]
        self.module.load_state_dict(state["module"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
