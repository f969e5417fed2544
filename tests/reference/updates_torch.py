"""Makes ``updates_torch.npz``: ten steps of each optimiser, and learning rates, as PyTorch computes them.

Run in an environment with PyTorch: ``python tests/reference/updates_torch.py``. LARS and LAMB, which ``torch.optim``
lacks, are written out below from their papers. The problem is a small tanh network in float64; its second bias starts
at zero. A rule's entry holds all parameters, flat, after each step: (10, parameters).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.optim import lr_scheduler

STEPS = 10
generator = np.random.default_rng(3)
problem = {
    "x": generator.normal(size=(8, 3)),
    "y": generator.normal(size=(8, 2)),
    "param.0": generator.normal(size=(3, 4)),
    "param.1": generator.normal(size=4),
    "param.2": generator.normal(size=(4, 2)),
    "param.3": np.zeros(2),
}
X, Y = torch.tensor(problem["x"]), torch.tensor(problem["y"])
CHANGING = 1.0 / (1 + np.arange(STEPS)) + 0.25 * (np.arange(STEPS) % 3)  # factors on the constant learning rate


def start() -> list[torch.Tensor]:
    return [torch.tensor(problem[f"param.{i}"], requires_grad=True) for i in range(4)]


def loss_of(params: list[torch.Tensor]) -> torch.Tensor:
    w1, b1, w2, b2 = params
    return ((torch.tanh(X @ w1 + b1) @ w2 + b2 - Y) ** 2).mean()


def flat(params: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([param.detach().flatten() for param in params]).numpy()


def run(make, rates: np.ndarray, max_norm: float | None = None, average: float | None = None) -> np.ndarray:
    params = start()
    optimiser = make(params, float(rates[0]))
    shadow = torch.tensor(flat(params))
    rows = []
    for rate in rates:
        for group in optimiser.param_groups:
            group["lr"] = float(rate)
        optimiser.zero_grad()
        loss_of(params).backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        optimiser.step()
        if average is not None:
            shadow = average * shadow + (1 - average) * torch.tensor(flat(params))
        rows.append(flat(params) if average is None else shadow.numpy())
    return np.stack(rows)


class Lars(torch.optim.Optimizer):
    """You et al. 2017, eq. 6, every layer alike; the learning rate outside the velocity, as in torch.optim.SGD."""

    def __init__(self, params, lr, momentum, weight_decay, trust):
        super().__init__(params, {"lr": lr})
        self.momentum, self.weight_decay, self.trust = momentum, weight_decay, trust

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                g = w.grad
                w_norm, g_norm = w.norm(), g.norm()
                local = (
                    self.trust * w_norm / (g_norm + self.weight_decay * w_norm) if w_norm > 0 and g_norm > 0 else 1.0
                )
                velocity = self.state[w].get("velocity", torch.zeros_like(w))
                velocity = self.momentum * velocity + local * (g + self.weight_decay * w)
                self.state[w]["velocity"] = velocity
                w -= group["lr"] * velocity


class Lamb(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2, phi the identity, every layer alike."""

    def __init__(self, params, lr, beta1, beta2, epsilon, weight_decay):
        super().__init__(params, {"lr": lr})
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for x in group["params"]:
                g, state = x.grad, self.state[x]
                t = state["t"] = state.get("t", 0) + 1
                m = state["m"] = self.beta1 * state.get("m", 0.0) + (1 - self.beta1) * g
                v = state["v"] = self.beta2 * state.get("v", 0.0) + (1 - self.beta2) * g**2
                r = (m / (1 - self.beta1**t)) / ((v / (1 - self.beta2**t)).sqrt() + self.epsilon)
                u = r + self.weight_decay * x
                ratio = x.norm() / u.norm() if x.norm() > 0 and u.norm() > 0 else 1.0
                x -= group["lr"] * ratio * u


def without_biases(optimiser, params, lr, weight_decay, **options):
    """Parameter groups in which biases (one axis) do not decay."""
    groups = [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim == 1], "weight_decay": 0.0},
    ]
    return optimiser(groups, lr=lr, **options)


optim = torch.optim
RULES = {
    "sgd": (0.1, lambda p, lr: optim.SGD(p, lr=lr)),
    "momentum": (0.05, lambda p, lr: optim.SGD(p, lr=lr, momentum=0.8)),
    "nesterov": (0.05, lambda p, lr: optim.SGD(p, lr=lr, momentum=0.8, nesterov=True)),
    "weight_decay": (0.05, lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.1)),
    "weight_decay_weights": (
        0.05,
        lambda p, lr: without_biases(optim.SGD, p, lr, weight_decay=0.1, momentum=0.9),
    ),
    "adagrad": (0.1, lambda p, lr: optim.Adagrad(p, lr=lr)),
    "rmsprop": (0.02, lambda p, lr: optim.RMSprop(p, lr=lr, alpha=0.9, eps=1e-3)),
    "adadelta": (1.0, lambda p, lr: optim.Adadelta(p, lr=lr, rho=0.8, eps=1e-4)),
    "adam": (0.05, lambda p, lr: optim.Adam(p, lr=lr, betas=(0.8, 0.99), eps=1e-3)),
    "adamw": (0.05, lambda p, lr: optim.AdamW(p, lr=lr, weight_decay=0.1)),
    "adamw_weights": (0.05, lambda p, lr: without_biases(optim.AdamW, p, lr, weight_decay=0.1)),
    "lars": (0.5, lambda p, lr: Lars(p, lr, momentum=0.9, weight_decay=0.01, trust=0.02)),
    "lamb": (0.05, lambda p, lr: Lamb(p, lr, beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.1)),
    "adagrad_defaults": (0.01, lambda p, lr: optim.Adagrad(p)),
    "rmsprop_defaults": (0.01, lambda p, lr: optim.RMSprop(p)),
    "adadelta_defaults": (1.0, lambda p, lr: optim.Adadelta(p)),
    "adam_defaults": (0.001, lambda p, lr: optim.Adam(p)),
    "adamw_defaults": (0.001, lambda p, lr: optim.AdamW(p)),
}


def rates_of(make, base: float, steps: int) -> np.ndarray:
    """The learning rates that a scheduler sets over ``steps`` steps."""
    optimiser = optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = make(optimiser)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return np.array(rates)


def warmed_up(make, steps: int):
    """``make``'s scheduler after ``steps`` of linear warm-up."""

    def both(optimiser):
        ramp = lr_scheduler.LinearLR(optimiser, start_factor=1 / (steps + 1), total_iters=steps)
        return lr_scheduler.SequentialLR(optimiser, [ramp, make(optimiser)], milestones=[steps])

    return both


SCHEDULES = {
    "cosine": (0.4, 21, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.01)),
    "cosine_warmup": (0.4, 21, warmed_up(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=15, eta_min=0.01), 5)),
    "step": (0.1, 12, lambda o: lr_scheduler.MultiStepLR(o, milestones=[3, 7, 8], gamma=0.5)),
    "polynomial": (0.3, 15, lambda o: lr_scheduler.PolynomialLR(o, total_iters=10, power=2.0)),
    "polynomial_warmup": (0.3, 15, warmed_up(lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=1.0), 4)),
}


def main() -> None:
    values = {**problem, "rates": CHANGING}
    for name, (rate, make) in RULES.items():
        values[f"{name}.constant"] = run(make, np.full(STEPS, rate))
        if not name.endswith("_defaults"):
            values[f"{name}.changing"] = run(make, rate * CHANGING)
    sgd = RULES["sgd"][1]
    values["clipped.constant"] = run(sgd, np.full(STEPS, 0.1), max_norm=0.7)
    values["ema.constant"] = run(sgd, np.full(STEPS, 0.1), average=0.9)
    for name, (base, steps, make) in SCHEDULES.items():
        values[f"schedule.{name}"] = rates_of(make, base, steps)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **values)


if __name__ == "__main__":
    main()
