"""A typer group that imports the module of a command when that command runs or shows its help.

Decisions:
- What a group holds is read from `radfm.cli.registry.COMMANDS` by the group's name.
- A missing extra of the package ends a command in one line that names the extra, wherever in the command the import is.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module

import typer
from typer.core import TyperCommand, TyperGroup

from radfm.cli.console import PlainCommand, needs
from radfm.cli.registry import COMMANDS, Command


class CommandGroup(TyperGroup):
    """The commands of the registry below one name; the group without a name is `radfm` itself."""

    def __init__(self, *, name: str = "", default: str | None = None, **options):
        super().__init__(name=name, **options)
        self.default = default
        self.commands = _Commands(name)

    def list_commands(self, context) -> list[str]:
        return list(self.commands)

    def format_commands(self, context, formatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.commands.entries.items()])

    def parse_args(self, context, args: list[str]) -> list[str]:
        if not args and self.no_args_is_help:
            print(context.get_help())
            raise typer.Exit(2)
        if self.default and args and args[0] not in (*self.commands, *context.help_option_names):
            args = [self.default, *args]
        return super().parse_args(context, args)


class _Commands(Mapping):
    """Name -> command of one group; a command's module is imported when its value is read."""

    def __init__(self, group: str):
        self.entries: dict[str, Command] = {}
        for entry in COMMANDS:
            parent, _, name = entry.name.rpartition(" ")
            if parent == group:
                self.entries[name] = entry
        self._loaded: dict[str, TyperCommand | TyperGroup] = {}

    def __getitem__(self, name: str) -> TyperCommand | TyperGroup:
        if name not in self._loaded:
            self._loaded[name] = _load(name, self.entries[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name) -> bool:
        return name in self.entries  # Mapping's own would import the module


def _load(name: str, entry: Command) -> TyperCommand | TyperGroup:
    if not entry.source:
        help_text = " ".join(filter(None, (entry.summary, entry.description)))
        return CommandGroup(
            name=entry.name, default=entry.default, help=help_text, no_args_is_help=True, rich_markup_mode=None
        )
    module, _, attribute = entry.source.partition(":")
    function = getattr(import_module(module), attribute)
    if isinstance(function, typer.Typer):
        command = typer.main.get_group(function)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name, cls=PlainCommand)(function)
        command = typer.main.get_command(single)
    if entry.extra:
        # Some options act while arguments are parsed (--template), so both steps may import what an extra brings.
        command.make_context = needs(entry.extra)(command.make_context)
        command.invoke = needs(entry.extra)(command.invoke)
    return command
