import pytest
from hypothesis import given, strategies as st

from penstock.engines.beams import Beams
from penstock.engines.openvino.lanes.beam_search import check_search
from penstock.engines.openvino.lanes.lane import Lane
from penstock.engines.openvino.lanes.request import Request, TextStream
from penstock.engines.openvino.pipeline import RUNNING
from penstock.engines.process import Submit
from penstock.engines.sharing import ALL
from penstock.errors import RequestError
from penstock.kv.prefix_index import BLOCK_SIZE
from penstock.types import Sampling, StructuredOutput

SHARED = [1] * (2 * BLOCK_SIZE)


def request(number, prompt, structured=None):
    return Request(
        Submit(number, prompt, Sampling(structured=structured), None, False, False), prompt
    )


def search(number, width, new=BLOCK_SIZE):
    submit = Submit(number, [number], Sampling(), None, False, False, beams=Beams(width, width))
    made = Request(submit, [number])
    made.max_new_tokens = new
    return made


def lane(slots=8, blocks=100):
    return Lane(pipeline=None, cache_blocks=blocks, max_num_seqs=slots, prefix_caching=True)


def admitted(lane):
    return [r.id for r in lane.admit(ALL)]


def test_slots_bound_what_runs_and_order_is_kept():
    queue = lane(slots=2)
    queue.waiting.extend(request(n, [n]) for n in range(4))
    assert admitted(queue) == [0, 1]
    queue.remove(queue.active[0])
    assert admitted(queue) == [2]


def test_a_search_takes_a_slot_for_each_beam():
    queue = lane(slots=5)
    queue.waiting.extend([request(0, [1]), search(1, 4), request(2, [2])])
    assert admitted(queue) == [0, 1]
    assert queue.taken == 5
    queue.remove(queue.active[1])
    assert (admitted(queue), queue.taken) == ([2], 2)


def test_others_pass_a_search_that_has_no_room_but_not_for_ever():
    queue = lane(slots=5)
    large = search(1, 4)
    queue.waiting.extend([request(0, [1]), request(2, [2]), large])
    assert admitted(queue) == [0, 2]
    assert admitted(queue) == []
    assert large.passed == 0  # nobody passed it
    last = 2
    while last < 200:
        queue.waiting.append(request(last + 1, [last]))
        if not admitted(queue):
            break
        queue.remove(queue.active[last])
        last += 1
    assert (large.passed, last) == (64, 66)
    queue.remove(queue.active[last])
    assert admitted(queue) == [1]  # and now nobody overtakes it
    assert queue.taken == 5


def test_beside_a_search_nothing_runs_that_could_exhaust_the_cache():
    queue = lane(slots=20, blocks=18)
    queue.waiting.extend([search(0, 4), request(1, [1]), request(2, [2]), search(3, 2)])
    assert admitted(queue) == [0, 1]  # 1 + 4 * 3 blocks, and 3 of the other at most
    queue.active[1].max_new_tokens = 2 * BLOCK_SIZE
    assert admitted(queue) == []
    queue.remove(queue.active[0])
    assert admitted(queue) == [2, 3]


def test_what_a_lane_can_never_hold_is_refused():
    queue = Lane(None, cache_blocks=20, max_num_seqs=20, prefix_caching=True, company=4)
    fits, too_large = search(0, 5), search(1, 6)
    assert fits.most_blocks <= queue.all_blocks < too_large.most_blocks <= 20
    check_search(fits, 20, queue.all_blocks)
    with pytest.raises(RequestError, match="KV cache"):
        check_search(too_large, 20, queue.all_blocks)
    queue.waiting.append(fits)
    assert admitted(queue) == [0]


def test_a_search_given_up_gives_its_slots_back():
    queue = lane()
    queue.waiting.append(search(0, 8))
    (one,) = queue.admit(ALL)
    one.handle = object()  # it computes its prompt
    queue.give_up(one)
    assert (queue.taken, queue.leaving) == (1, [one])


def test_a_follower_waits_until_its_prefix_is_there():
    queue = lane()
    queue.waiting.extend([request(0, [*SHARED, 5]), request(1, [*SHARED, 6]), request(2, [7])])
    assert admitted(queue) == [0, 2]
    assert admitted(queue) == []
    queue.note_prefilled(queue.active[0])
    assert admitted(queue) == [1]
    assert queue.active[1].cached == 2 * BLOCK_SIZE


def test_a_cached_prompt_goes_first_but_passes_nobody_for_ever():
    queue = lane(slots=1)
    queue.waiting.append(request(0, [*SHARED, 5]))
    assert admitted(queue) == [0]
    queue.note_prefilled(queue.active[0])
    fresh = request(1, [9] * BLOCK_SIZE)
    queue.waiting.extend(
        [fresh, request(2, [8] * BLOCK_SIZE), request(3, [*SHARED, 6]), request(4, [3])]
    )
    queue.remove(queue.active[0])
    assert admitted(queue) == [3]
    assert [r.id for r in queue.waiting] == [1, 2, 4]
    assert [r.passed for r in queue.waiting] == [1, 1, 0]
    last = 3
    while fresh in queue.waiting:
        queue.waiting.append(request(last + 2, [*SHARED, last]))
        queue.remove(queue.active[last])
        (last,) = admitted(queue)
        assert last < 200
    assert fresh.passed == 64


def test_a_leader_that_leaves_lets_a_follower_lead():
    queue = lane()
    queue.waiting.extend([request(0, [*SHARED, 5]), request(1, [*SHARED, 6])])
    assert admitted(queue) == [0]
    queue.remove(queue.active[0])
    assert admitted(queue) == [1]
    assert queue.active[1].cached == 0


def test_the_whole_prompt_is_never_counted_as_cached():
    queue = lane()
    queue.waiting.append(request(0, SHARED))
    admitted(queue)
    queue.note_prefilled(queue.active[0])
    queue.waiting.append(request(1, SHARED))
    admitted(queue)
    assert queue.active[1].cached == len(SHARED) - 1


def test_a_new_constraint_is_tried_by_one_request_at_a_time():
    first, second = StructuredOutput("regex", "a"), StructuredOutput("regex", "b")
    queue = lane()
    queue.waiting.extend([request(0, [1], first), request(1, [2], second), request(2, [3])])
    assert admitted(queue) == [0, 2]
    assert queue.on_trial.id == 0
    queue.note_prefilled(queue.active[0])
    queue.waiting.append(request(3, [4], first))
    assert admitted(queue) == [1, 3]  # a proven constraint needs no trial


def test_requests_of_a_step_that_failed_are_tried_one_at_a_time():
    queue = lane()
    suspects = [request(0, [1]), request(1, [2])]
    for one in suspects:
        one.suspect = True
    queue.waiting.extend([*suspects, request(2, [3])])
    assert admitted(queue) == [0, 2]
    queue.note_prefilled(queue.active[0])
    for _ in range(7):
        queue.note_step()
    assert admitted(queue) == []
    assert queue.on_trial.id == 0
    queue.note_step()
    assert admitted(queue) == [1]
    assert not suspects[0].suspect
    queue.remove(suspects[1])  # it has ended
    assert queue.on_trial is None


def test_a_restarted_request_goes_on_from_its_tokens():
    queue = lane()
    running = request(0, [1, 2, 3])
    running.max_new_tokens = 10
    queue.waiting.append(running)
    admitted(queue)
    running.ids += [8, 9]
    queue.remove(running)
    queue.restart(running)
    assert admitted(queue) == [0]
    assert running.prompt == [1, 2, 3, 8, 9]
    assert running.prompt_tokens == 3
    assert running.max_new_tokens == 8
    running.ids.append(7)
    queue.remove(running)
    queue.restart(running)
    assert running.prompt == [1, 2, 3, 8, 9, 7]


def test_a_restarted_constrained_request_begins_again():
    queue = lane()
    running = request(0, [1], StructuredOutput("regex", "a"))
    running.ids += [8]
    queue.restart(running)
    assert (running.prompt, running.ids) == ([1], [])


def test_removing_a_waiting_request_takes_it_off_the_queue():
    queue = lane()
    waiting = request(0, [1])
    queue.waiting.append(waiting)
    queue.remove(waiting)
    assert not queue.busy


def decode(ids):
    """Bytes as tokens: characters of several bytes are unfinished in between."""
    return bytes(ids).decode(errors="replace")


def streamed(data, size):
    stream, text = TextStream(), ""
    pieces = [list(data[at : at + size]) for at in range(0, len(data), size)] or [[]]
    for number, piece in enumerate(pieces):
        stream.add(piece)
        shown, whole = stream.windows()
        text += stream.advance(decode(shown), decode(whole), last=number == len(pieces) - 1)
    return text


@given(st.text(max_size=40), st.integers(1, 5))
def test_the_pieces_add_up_to_the_text(text, size):
    assert streamed(text.encode(), size) == text


def test_an_unfinished_character_is_held_back_until_the_end():
    stream = TextStream()
    stream.add(list("é".encode()[:1]))
    shown, whole = stream.windows()
    assert stream.advance(decode(shown), decode(whole), last=False) == ""
    assert stream.advance(decode(shown), decode(whole), last=True) == "\N{REPLACEMENT CHARACTER}"


class Handle:
    """A request in the pipeline, without a token yet."""

    def __init__(self):
        self.cancelled = False

    def cancel(self):
        self.cancelled = True

    def can_read(self):
        return False

    def get_status(self):
        return RUNNING


def running():
    """A lane in which one request waits for its first token."""
    queue = lane()
    queue.waiting.append(request(1, [1]))
    assert admitted(queue) == [1]
    queue.active[1].handle = Handle()
    return queue, queue.active[1]


def test_a_request_is_dropped_only_when_its_prompt_is_computed():
    queue = lane()
    for number in (1, 2):
        queue.batch_waiting.append(request(number, [*SHARED, number]))
        queue.batch_waiting[-1].batch = True
    assert admitted(queue) == [1]  # its follower waits for the blocks
    first = queue.active[1]
    first.handle = Handle()
    assert queue.surplus(0) == []
    queue.give_up(first)
    assert (first.handle.cancelled, queue.active, queue.running) == (False, {}, True)
    assert admitted(queue) == []
    first.handle.can_read = lambda: True
    queue.note_step()
    assert (first.handle.cancelled, queue.leaving) == (True, [])
    assert admitted(queue) == [2]


def test_a_prompt_that_nobody_waits_for_keeps_its_slot():
    queue = lane(slots=1)
    queue.waiting.extend(request(number, [number]) for number in (1, 2))
    assert admitted(queue) == [1]
    first = queue.active[1]
    first.handle = Handle()
    queue.give_up(first)
    assert (admitted(queue), queue.taken, queue.wanted) == ([], 1, True)


def test_a_prompt_that_the_cache_had_no_room_for_taints_it():
    queue, first = running()
    queue.give_up(first)
    first.handle.get_status = lambda: None
    queue.note_step()
    assert (queue.tainted, queue.leaving) == (True, [])


def test_a_request_with_tokens_is_dropped_at_once():
    queue, first = running()
    queue.note_prefilled(first)
    queue.give_up(first)
    assert (first.handle.cancelled, queue.leaving, queue.cancelled) == (True, [], True)
