"""Checks that two setups compute the same; the benchmarks time nothing that does not."""

from library.training_setup import Batch, TrainingSetup, forward_backward, update
from torch import Tensor

TOLERANCE = 1e-4  # of losses and gradients, relative, in fp32
UPDATE_TOLERANCE = 0.01  # a number near 1 holds an update of 3e-4 to 2e-4 of the update's size


class DisagreementError(ValueError):
    """The two setups of a comparison do not compute the same."""


def check_tensor(
    what: str,
    found: Tensor | None,
    wanted: Tensor | None,
    tolerance: float = 10 * TOLERANCE,
    absolute: float = 0.0,
) -> None:
    """Check that two tensors differ by rounding only.

    Args:
        what: what the tensors are, for the error.
        found: the tensor to check.
        wanted: what it should be.
        tolerance: the largest allowed norm of the difference, relative to that of ``wanted``.
        absolute: what is allowed beside that.

    Raises:
        DisagreementError: if they differ by more, or if one is missing.
    """
    if found is None or wanted is None:
        raise DisagreementError(f"{what} is missing in one of the two models")
    error, size = float((found - wanted).norm()), float(wanted.norm())
    if not error <= tolerance * size + absolute:
        raise DisagreementError(f"{what} differs by {error:.2g} (its norm is {size:.2g})")


def check_loss_and_gradients(
    ours: TrainingSetup,
    reference: TrainingSetup,
    batch: Batch,
    step: int = 0,
    *,
    tolerance: float = 10 * TOLERANCE,
    of_largest: float = 0.0,
    some_layers: bool = False,
) -> None:
    """Check the loss and the gradients of one forward and backward pass, which are left there.

    Args:
        ours: the setup to check.
        reference: what it should compute.
        batch: what both get.
        step: number of the step.
        tolerance: of each gradient, relative.
        of_largest: what each gradient may be off beside that, as a share of the largest one.
        some_layers: whether parameters of layers that a step leaves out may have no gradient.

    Raises:
        DisagreementError: naming the first difference.
    """
    loss, wanted_loss = (forward_backward(setup, batch, step) for setup in (ours, reference))
    if not (loss - wanted_loss).abs() <= TOLERANCE * wanted_loss.abs():
        raise DisagreementError(f"the loss is {loss:.7g}, not {wanted_loss:.7g}")
    found, wanted = ours.gradients(), reference.gradients()
    if missing := wanted.keys() - found.keys():
        raise DisagreementError(f"only the reference trains {min(missing)}")
    largest = max(float(gradient.norm()) for gradient in wanted.values() if gradient is not None)
    for name, gradient in wanted.items():
        if some_layers and gradient is None and found[name] is None:
            continue
        check_tensor(
            f"the gradient of {name}", found[name], gradient, tolerance, of_largest * largest
        )


def check_step(
    ours: TrainingSetup,
    reference: TrainingSetup,
    batch: Batch,
    step: int,
    *,
    training_mode: bool = False,
    same_parameters: bool = True,
) -> None:
    """Check a whole training step, which is taken: loss, gradients and update.

    Args:
        ours: the setup to check.
        reference: what it should compute.
        batch: what both get.
        step: number of the step.
        training_mode: whether the models are in training mode. Else dropout is off, which the two
            models would draw in another order.
        same_parameters: whether both must train the same parameters; else the reference may have
            fewer.

    Raises:
        DisagreementError: naming the first difference.
    """
    setups = (ours, reference)
    for setup in setups:
        setup.model.train(training_mode)
    check_loss_and_gradients(
        ours, reference, batch, step, tolerance=TOLERANCE, of_largest=1e-6, some_layers=True
    )
    found, wanted = ours.gradients(), reference.gradients()
    if same_parameters and (extra := found.keys() - wanted.keys()):
        raise DisagreementError(f"only lorada trains {min(extra)}")
    # A reference that holds its parameters in another form has no names in common with lorada.
    names = [name for name in reference.parameters if name in ours.parameters]
    before = {name: reference.parameters[name].detach().clone() for name in names}
    for name in names:
        if not before[name].equal(ours.parameters[name]):
            raise DisagreementError(f"{name} does not start at the same values")
    clear = {name: _above_rounding(found[name], wanted[name]) for name in names}
    for setup in setups:
        update(setup, step)
    for name in names:
        found_update, wanted_update = (
            (setup.parameters[name].detach() - before[name]) * clear[name] for setup in setups
        )
        check_tensor(f"the update of {name}", found_update, wanted_update, UPDATE_TOLERANCE)
    for setup in setups:
        setup.model.train()


def _above_rounding(found: Tensor | None, wanted: Tensor | None) -> Tensor | bool:
    """Which entries of a gradient are more than rounding: AdamW's first step is only their sign."""
    if found is None or wanted is None:
        return True
    threshold = 10 * TOLERANCE * wanted.square().mean().sqrt()
    return (wanted.abs() > threshold) | (found == wanted)
