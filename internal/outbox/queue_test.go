package outbox

import (
	"testing"
	"time"

	"cardorder/internal/store"
)

func jobOf(class store.Class) *job {
	m := store.Message{Kind: store.KindSubmit, Class: class}
	if class == store.ClassQuestion {
		m.Kind = store.KindAsk
	}
	return &job{Message: m}
}

// fill is a queue with so many messages of each class.
func fill(singles, batches, questions int) *queue {
	var q queue
	for class, n := range map[store.Class]int{store.ClassSingle: singles, store.ClassBatch: batches, store.ClassQuestion: questions} {
		for range n {
			q.add(jobOf(class))
		}
	}
	return &q
}

// Who gets the free slots when everything waits, and each call ends at once.
func TestPickShares(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                        string
		singles, batches, questions int
		want                        map[store.Class]int // of the first 120
	}{
		{"orders alone", 200, 200, 0, map[store.Class]int{store.ClassSingle: 108, store.ClassBatch: 12}},
		{"batches alone", 0, 200, 0, map[store.Class]int{store.ClassBatch: 120}},
		{"few singles", 5, 200, 0, map[store.Class]int{store.ClassSingle: 5, store.ClassBatch: 115}},
		{"questions and singles", 200, 0, 200, map[store.Class]int{store.ClassSingle: 90, store.ClassQuestion: 30}},
		{"all", 200, 200, 200, map[store.Class]int{store.ClassSingle: 81, store.ClassBatch: 9, store.ClassQuestion: 30}},
		{"questions alone", 0, 0, 200, map[store.Class]int{store.ClassQuestion: 120}},
	} {
		for _, share := range []int{1, 2, 16} {
			q, got := fill(c.singles, c.batches, c.questions), map[store.Class]int{}
			for range 120 {
				j := q.pick(slots{share: share})
				if j == nil {
					t.Fatalf("%s, %d slots: nothing after %v", c.name, share, got)
				}
				got[j.Class]++
			}
			for _, class := range store.Classes {
				if got[class] != c.want[class] {
					t.Errorf("%s, %d slots: %d of %s, want %d", c.name, share, got[class], class, c.want[class])
				}
			}
		}
	}
}

// A D1 that answers no questions keeps no order waiting, and one that takes no orders
// keeps no question waiting.
func TestPickLeavesSlots(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		slots slots
		queue *queue
		want  store.Class
		none  bool
	}{
		{"no slot", slots{share: 4, busy: 4}, fill(1, 1, 1), 0, true},
		{"no share", slots{share: 0}, fill(1, 1, 1), 0, true},
		{"the share shrank", slots{share: 2, busy: 3}, fill(1, 1, 1), 0, true},
		{"questions leave a quarter", slots{share: 8, busy: 6, asking: 6}, fill(0, 0, 9), 0, true},
		{"to orders", slots{share: 8, busy: 6, asking: 6}, fill(1, 0, 9), store.ClassSingle, false},
		{"and take the rest", slots{share: 8, busy: 5, asking: 5}, fill(0, 0, 9), store.ClassQuestion, false},
		{"with one slot one is asked", slots{share: 1}, fill(0, 0, 9), store.ClassQuestion, false},
	} {
		j := c.queue.pick(c.slots)
		if (j == nil) != c.none || j != nil && j.Class != c.want {
			t.Errorf("%s: got %+v", c.name, j)
		}
	}
}

// An order that may have been sent waits among the questions, whatever its class.
func TestLapsedIsAQuestion(t *testing.T) {
	t.Parallel()
	var q queue
	j := jobOf(store.ClassSingle)
	j.MaybeSent = true
	q.add(j)
	if q.waiting(store.ClassQuestion) != 1 || q.len() != 1 {
		t.Errorf("queue %+v", q)
	}
	if dropped := q.drop(func(j *job) bool { return j.asks() }); len(dropped) != 1 || q.len() != 0 {
		t.Errorf("dropped %d, left %d", len(dropped), q.len())
	}
}

// Claiming ahead grows where messages are gone at once, and never beyond its bounds.
func TestAhead(t *testing.T) {
	t.Parallel()
	a, now := ahead{depth: 16}, at(0)
	for range 20 {
		now = now.Add(goneFast / 2)
		a.claimed(now, true, 16)
	}
	if a.depth != maxAhead {
		t.Errorf("a fast D1: %d", a.depth)
	}
	for range 20 {
		now = now.Add(2 * goneSlowly)
		a.claimed(now, true, 16)
	}
	if a.depth != 16 {
		t.Errorf("a slow D1: %d", a.depth)
	}
	a.claimed(now, false, 16)
	a.claimed(now.Add(1), true, 16)
	if a.depth != 16 {
		t.Errorf("little to do: %d", a.depth)
	}
}

// A share shrinks at once and grows when the others must know, so that together they
// never exceed the limit.
func TestShare(t *testing.T) {
	t.Parallel()
	s := share{settle: 2 * time.Second}
	for i, step := range []struct {
		at    time.Duration
		heard int
		alone bool
		want  int
	}{
		{0, 8, false, 0}, // the other one may not have heard of this one
		{time.Second, 8, false, 0},
		{2 * time.Second, 8, false, 8},
		{3 * time.Second, 5, false, 5},
		{4 * time.Second, 8, false, 5},
		{5 * time.Second, 5, false, 5}, // not after all
		{6 * time.Second, 8, false, 5},
		{8 * time.Second, 8, false, 8},
		{9 * time.Second, 16, true, 16},
	} {
		if got := s.allot(at(step.at), step.heard, step.alone); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
}

// The shares of any number of replicas are the limit, and differ by one at most.
func TestSharesAddUp(t *testing.T) {
	t.Parallel()
	for limit := 1; limit <= 20; limit++ {
		for live := 1; live <= 7; live++ {
			sum := 0
			for rank := range live {
				n := store.Fleet{Live: live, Rank: rank}.Share(limit)
				if n < limit/live || n > limit/live+1 {
					t.Errorf("limit %d, rank %d of %d: %d", limit, rank, live, n)
				}
				sum += n
			}
			if sum != limit {
				t.Errorf("limit %d among %d: %d", limit, live, sum)
			}
		}
	}
}
