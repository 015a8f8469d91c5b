package outbox

import (
	"slices"
	"time"

	"cardorder/internal/store"
)

// job is a claimed message in this process.
type job struct {
	store.Message
	// claimedAt was read before the claim, by the monotonic clock: the lease ends
	// no earlier than its length after it.
	claimedAt time.Time
	trying    bool // the one message of a half-open breaker
}

// asks tells whether D1 is only asked for the message.
func (j *job) asks() bool { return j.Kind == store.KindAsk || j.MaybeSent }

// queue holds what was claimed ahead of free slots. Singles go before batches, nine to
// one; questions have a share of the slots of their own. So nobody waits for ever.
type queue struct {
	sends [2][]*job // by class: single, batch
	asks  []*job

	orders    int // picks of an order while both classes waited
	questions int // picks while both orders and questions waited
}

// batchEvery is how often a batch comes first, questionEvery how often a question
// comes before anything that is to be sent.
const (
	batchEvery    = 10
	questionEvery = 4
)

func (q *queue) add(j *job) {
	switch {
	case j.asks():
		q.asks = append(q.asks, j)
	case j.Class == store.ClassBatch:
		q.sends[1] = append(q.sends[1], j)
	default:
		q.sends[0] = append(q.sends[0], j)
	}
}

// waiting is how many of a class's messages wait here.
func (q *queue) waiting(c store.Class) int {
	switch c {
	case store.ClassQuestion:
		return len(q.asks)
	case store.ClassBatch:
		return len(q.sends[1])
	default:
		return len(q.sends[0])
	}
}

func (q *queue) len() int { return len(q.asks) + len(q.sends[0]) + len(q.sends[1]) }

// slots is what is free: the calls that may be open at once, and those that are.
type slots struct {
	share  int // at most so many
	busy   int // open calls
	asking int // of them, questions
}

// mayAsk tells whether one more question may be asked. While orders wait it is a
// quarter of the slots at most; and a quarter is always left to orders, for a D1 that
// answers no questions must not keep them waiting.
func (s slots) mayAsk(ordersWait bool) bool {
	quarter := max(1, s.share/4)
	if ordersWait {
		return s.asking < quarter
	}
	return s.asking < max(1, s.share-quarter)
}

// pick takes the next message for a free slot; nil when there is none.
func (q *queue) pick(s slots) *job {
	if s.busy >= s.share {
		return nil
	}
	single, batch := len(q.sends[0]) > 0, len(q.sends[1]) > 0
	ask := len(q.asks) > 0 && s.mayAsk(single || batch)
	if ask && (single || batch) {
		q.questions++
		ask = q.questions%questionEvery == 0
	}
	if !ask && single && batch {
		q.orders++
		single = q.orders%batchEvery != 0
	}
	switch {
	case ask:
		return take(&q.asks)
	case single:
		return take(&q.sends[0])
	case batch:
		return take(&q.sends[1])
	}
	return nil
}

func take(list *[]*job) *job {
	j := (*list)[0]
	(*list)[0] = nil // it holds an order's content
	*list = (*list)[1:]
	return j
}

// drop takes out of the queue what must not be sent from here any more.
func (q *queue) drop(gone func(*job) bool) (dropped []*job) {
	for _, list := range []*[]*job{&q.sends[0], &q.sends[1], &q.asks} {
		*list = slices.DeleteFunc(*list, func(j *job) bool {
			if gone(j) {
				dropped = append(dropped, j)
				return true
			}
			return false
		})
	}
	return dropped
}

func all(*job) bool { return true }
