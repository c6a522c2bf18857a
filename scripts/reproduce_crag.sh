#!/usr/bin/env bash
# CRAG, from the official download to the paper's table; reproduce.sh says how and with what settings.
exec bash "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" crag 120 "$@"
