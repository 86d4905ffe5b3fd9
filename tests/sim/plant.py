"""Plants a bug in one source file, for a test that proves that the simulator finds it.

    plant.py NAME SOURCE OUTPUT

The text of a bug must be in its file exactly once: when the code moves on, the build says so.
"""
import pathlib
import sys

# name: (what is there, what the bug makes of it)
BUGS = {
    "no_crc": ("if (crc != mc_slot_table(r->head, &r->info, chunk))", "if (crc != mc_slot_table(r->head, &r->info, chunk) && false)"),
    "no_wait_for_frees": ("done[i].gen = done[i].status == 0 && mc_index_is_pending(m->index, q->hashes[i]);", "done[i].gen = 0;"),
    "no_linger": ("now_ns - w->dead_ns >= MC_OWNER_LINGER_NS", "now_ns >= w->dead_ns"),
    "parent_first": ("return group_at(e, group)->last;", "return group_at(e, group)->first;"),
    "no_fence": ("t->is_unfenced = rc == -MC_E_UNFENCED;", "t->is_unfenced = false;"),
    "no_epoch": ("if (said->epoch < epoch ||", "if (said->epoch >= epoch || said->epoch < epoch ||"),
}


def main() -> int:
    name, source, output = sys.argv[1:]
    text = pathlib.Path(source).read_text()
    there, bug = BUGS[name]
    if text.count(there) != 1:
        print(f"plant.py: {source} has the text of the bug '{name}' {text.count(there)} times: {there!r}", file=sys.stderr)
        return 1
    pathlib.Path(output).write_text(text.replace(there, bug))
    return 0


if __name__ == "__main__":
    sys.exit(main())
