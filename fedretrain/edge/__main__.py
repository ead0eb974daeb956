"""``python -m fedretrain.edge``: the agent's command line by itself."""

from fedretrain.edge.cli import main

raise SystemExit(main())
