"""A copy of a network's structure to try things on: same code, other tensors, none of the owner's hooks.

`copy.deepcopy` would fail on what cannot be copied (locks, files, generators, compiled or scripted parts) and
run the owner's own methods for copying. Here only modules and the containers they sit in are made anew;
anything else is shared with the model.

>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 3))
>>> twin = model_copy(model, lambda tensor: tensor.detach())
>>> twin[0] is model[0], twin[0].weight.data_ptr() == model[0].weight.data_ptr()
(False, True)
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule

# Hooks that belong to what a module computes: this package's blocks and torch's own (weight norm, pruning).
_OUR_HOOKS = ("nonlocal_nn", "torch")
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def model_copy(model: nn.Module, new_tensor: Callable[[Tensor], Tensor]) -> nn.Module:
    """The copy. Wrappers that compile or distribute are left out: the module inside them runs.

    Args:
        model: stays as it is.
        new_tensor: what stands for a parameter, buffer or other tensor of the model.
    """
    copied = _Copier(new_tensor).value(model)
    assert isinstance(copied, nn.Module)
    return copied


class _Copier:
    def __init__(self, new_tensor: Callable[[Tensor], Tensor]) -> None:
        self.new_tensor = new_tensor
        self.done: dict[int, Any] = {}
        self.kept: list[Any] = []  # so that no id is given to another object meanwhile

    def value(self, value: Any) -> Any:
        """The copy of what a module holds; what is no module, tensor or plain container is shared."""
        if id(value) in self.done:
            return self.done[id(value)]
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            return self._remember(value, self._tensor(value))
        if type(value) in (list, set):
            return self._remember(value, type(value)(self.value(item) for item in value))
        if type(value) is tuple:
            return tuple(self.value(item) for item in value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.value(item) for item in value))
        if type(value) in (dict, OrderedDict):
            return self._remember(value, type(value)((key, self.value(item)) for key, item in value.items()))
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.value(value.__self__))
        if type(value) is functools.partial:
            keywords = {key: self.value(item) for key, item in value.keywords.items()}
            return functools.partial(self.value(value.func), *map(self.value, value.args), **keywords)
        return value

    def _remember(self, value: Any, copied: Any) -> Any:
        self.done[id(value)] = copied
        self.kept.append(value)
        return copied

    def _tensor(self, tensor: Tensor) -> Tensor:
        copied = self.new_tensor(tensor)
        if isinstance(tensor, nn.Parameter) and not isinstance(copied, nn.Parameter):
            return nn.Parameter(copied, requires_grad=False)
        return copied

    def _module(self, module: nn.Module) -> Any:
        if isinstance(module, ScriptModule):
            return self._remember(module, module)  # its code and its tensors are one
        inside = wrapped_module(module)
        if inside is not None:
            return self._remember(module, self.value(inside))
        twin = module.__class__.__new__(module.__class__)
        self._remember(module, twin)  # first: a module may hold itself
        state = dict(vars(module))
        for name in _HOOKS:
            hooks = state.get(name)
            if hooks is not None:
                state[name] = OrderedDict((key, hook) for key, hook in hooks.items() if _is_ours(hook))
        for name in list(state):
            if name.endswith(("_with_kwargs", "_always_called")) and isinstance(state[name], dict):
                state[name] = type(state[name])(state[name])
            elif name not in _HOOKS:
                state[name] = self.value(state[name])
        state["_compiled_call_impl"] = None
        vars(twin).update(state)
        return twin


def wrapped_module(module: nn.Module) -> nn.Module | None:
    """The module inside one that compiles or distributes it; None where it is neither."""
    names = {kind.__name__ for kind in type(module).__mro__}
    if "OptimizedModule" in names:
        inside = module._modules.get("_orig_mod")
    elif names & {"DistributedDataParallel", "DataParallel"}:
        inside = module._modules.get("module")
    else:
        return None
    return inside


def _is_ours(hook: Any) -> bool:
    function = getattr(hook, "hook", hook)  # torch wraps some
    function = getattr(function, "func", function)
    where = getattr(function, "__module__", None) or type(function).__module__
    return where.partition(".")[0] in _OUR_HOOKS
