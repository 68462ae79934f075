from . import command as command, maps as maps, sweep as sweep
