"""For the reference: a method that is assigned, ``step = stepping.step``, is shown as the function."""

from __future__ import annotations

from typing import Any

import griffe


class AssignedMethods(griffe.Extension):
    """Makes aliases of the attributes of a class that are functions of another module."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """After the members of a class were collected."""
        for name, member in list(cls.members.items()):
            value = member.value if isinstance(member, griffe.Attribute) else None
            if isinstance(value, griffe.ExprAttribute) and value.canonical_path.startswith("fxgraft."):
                alias = griffe.Alias(name, value.canonical_path, lineno=member.lineno, parent=cls)
                cls.set_member(name, alias)
