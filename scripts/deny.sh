#!/usr/bin/env bash
# Checks licences, duplicates and sources of all dependencies by deny.toml.
set -euo pipefail
deny=$(scripts/tool.sh cargo-deny 0.20.2)
"$deny" --locked check licenses bans sources
