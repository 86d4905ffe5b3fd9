"""Print the machine's topology as the engine sees it: console script transfer_engine_topology_dump."""

import argparse
import json
import os
import sys

from mooncake.engine import TransferEngine


def main() -> None:
    parser = argparse.ArgumentParser(prog="transfer_engine_topology_dump", description=__doc__)
    parser.add_argument("--device-name", default="", help="comma list of devices to look at; none: all")
    parser.add_argument("--backend", choices=["auto", "te"], default="auto", help="engine; this build has one, te")
    parser.add_argument("--use-custom-topo", action="store_true", help="print the file of --custom-topo-json instead")
    parser.add_argument(
        "--custom-topo-json", default=os.environ.get("MC_CUSTOM_TOPO_JSON", ""), help="file (default: $MC_CUSTOM_TOPO_JSON)"
    )
    args = parser.parse_args()
    source = "discover"
    text = ""
    if args.use_custom_topo:
        source = "custom"
        try:
            with open(args.custom_topo_json, encoding="utf-8") as file:
                text = json.dumps(json.load(file))
        except (OSError, ValueError) as why:
            sys.exit(f"transfer_engine_topology_dump: --custom-topo-json {args.custom_topo_json!r}: {why}")
    else:
        text = TransferEngine().get_local_topology(args.device_name or None)
    print(f"Local topology [te/{source}]: {text}")


if __name__ == "__main__":
    main()
