"""`python -m fedretrain`: see `fedretrain.cli`."""

from __future__ import annotations

from fedretrain.cli import main

raise SystemExit(main())
