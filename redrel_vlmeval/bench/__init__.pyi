from . import command as command, maps as maps, ranking as ranking, sweep as sweep
