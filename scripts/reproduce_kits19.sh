#!/usr/bin/env bash
# KiTS19, from the official download to the paper's table; reproduce.sh says how and with what settings.
exec bash "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" kits19 48 "$@"
