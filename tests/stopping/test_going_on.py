"""Who watches a fit goes on where another one was, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppl_vi.checkpoints.format import decoded, encoded
from ppl_vi.stepping.rates import StagedRate
from ppl_vi.stopping.reasons import StopReason
from ppl_vi.stopping.watching import Watch

STEPS = 20_000


class Fit:
    """Steps of one parameter, whose losses are noise about a fall."""

    def __init__(self, state: object = None) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(3))
        self.rate = StagedRate(torch.optim.Adam([self.parameter], lr=0.05))
        self.watch = Watch("auto", STEPS, self.rate, lambda: [self.parameter])
        if state is not None:
            found = decoded(encoded(state), "state")
            self.rate.load_state_dict(found["rate"])
            self.rate.optimizer.param_groups[0]["lr"] = found["lr"]
            self.parameter.data.copy_(found["parameter"])
            self.watch.go_on(found["watch"])

    def block(self, number: int) -> tuple[bool, float, list[float]]:
        chance = np.random.default_rng(number)
        self.parameter.data += torch.from_numpy(chance.standard_normal(3)).float()
        fall = 50 * np.exp(-np.arange(100 * number, 100 * number + 100) / 400)
        stops = self.watch.sees((fall + chance.standard_normal(100)).tolist())
        return stops, self.rate.rate, self.parameter.tolist()

    def state(self) -> object:
        return {
            "rate": self.rate.state_dict(),
            "lr": self.rate.rate,
            "parameter": self.parameter.detach(),
            "watch": self.watch.state(),
        }


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_a_watch_goes_on_through_all_stages() -> None:
    whole, cut, rates = Fit(), Fit(), set()
    for number in range(STEPS // 100):
        expected = whole.block(number)
        cut = Fit(cut.state())
        assert cut.block(number) == expected
        rates.add(expected[1])
        if expected[0]:
            break
    assert expected[0] and len(rates) > 2
    assert str(cut.watch.told(StopReason.STEPS)) == str(whole.watch.told(StopReason.STEPS))
