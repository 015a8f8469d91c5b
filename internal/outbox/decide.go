package outbox

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// Policy is how answers, and missing answers, are taken.
type Policy struct {
	// ResendAfter is how long D1 may need to show an order that it accepted. An
	// order whose outcome is unknown is sent again only after two answers later
	// than this that say it is not there; 0 means 5 min. Every delay between
	// questions is a share of it.
	ResendAfter time.Duration
	// NeverResend asks for ever instead (afterUnknown: wait).
	NeverResend bool
	// Retry404For is for how long after the first one a 404 to an order proves nothing:
	// the card may be registered at D1 a moment later; 0 means 15 min.
	Retry404For time.Duration
	// StopAfterRefusals is how many different orders D1 must refuse in a way that need
	// not be their fault, accepting none between, for the lane to stop; 0 means 5.
	StopAfterRefusals int
	// GiveUpAfter is how much waiting between tries of its own an order gets before it
	// is given up; 0 means 72 h.
	GiveUpAfter time.Duration
	// Vocabulary is what D1's documentation leaves open.
	Vocabulary order.Vocabulary
	// Guard finds the issuer's card numbers in what D1 shows.
	Guard order.PANGuard
}

func (p Policy) withDefaults() Policy {
	setDefault(&p.ResendAfter, 5*time.Minute)
	setDefault(&p.Retry404For, 15*time.Minute)
	setDefault(&p.StopAfterRefusals, 5)
	setDefault(&p.GiveUpAfter, 72*time.Hour)
	return p
}

// submitted says what follows from D1's answer to an order.
func (p Policy) submitted(m store.Message, attempt store.Attempt, a d1client.Answer) store.Completion {
	attempt.Kind, attempt.Outcome, attempt.OperationID = store.AttemptSubmit, a.Outcome.String(), a.OperationID
	c := store.Completion{Message: m, Attempt: note(attempt, a.Reply)}
	retry := store.Next{RunIn: max(a.RetryAfter, backoff(m.Tries)), Tries: m.Tries + 1}
	switch a.Outcome {
	case d1client.Taken:
		c.Evidence = []order.Evidence{order.Taken{OperationID: a.OperationID}}
		if a.OperationID != "" {
			c.Seen = []string{a.OperationID}
		}
	case d1client.NotTaken:
		c.Next = retry
		c.Next.Unsent = true
	case d1client.Refused:
		if ownFault(a) {
			c.Evidence = []order.Evidence{order.Refusal{}}
			break
		}
		// Whose fault it is, the next answer to another order tells: see the store.
		retry.Refused, retry.StopAfter = true, p.StopAfterRefusals
		if a.Status == http.StatusNotFound {
			retry.RejectAfter = p.Retry404For
		}
		c.Evidence, c.Next = p.burning(m, retry)
	default:
		c.Evidence = []order.Evidence{order.LostAnswer{}}
		c.Next = store.Next{RunIn: max(a.RetryAfter, p.askIn(0, 0)), Maybe: store.MaybeNow}
		if a.Reason == d1client.ReasonConflict {
			// D1 may have it: only a question can tell, never a repeat.
			c.Evidence = append(c.Evidence, order.Notice{Attention: order.AttentionConflict})
			c.Next.ResendOff = true
		}
	}
	return c
}

// ownFault tells whether a refusal is certainly the order's own fault: D1 names
// a field of it. A key that D1 cannot use may be wrong for all orders.
func ownFault(a d1client.Answer) bool {
	return a.Status == 400 && a.HasErrorBody && a.ErrorCode != "CRYPTO_ERROR"
}

// burning makes a wait count towards giving up, and ends the trying when enough has
// been waited.
func (p Policy) burning(m store.Message, next store.Next) ([]order.Evidence, store.Next) {
	next.Burns = true
	if m.TryingFor+next.RunIn <= p.GiveUpAfter {
		return nil, next
	}
	next.GiveUp = true
	return []order.Evidence{order.Notice{Attention: order.AttentionGivenUp}}, next
}

// unreadable keeps an order whose content cannot be read and calls for help.
func (p Policy) unreadable(m store.Message, attempt store.Attempt) store.Completion {
	attempt.Kind = store.AttemptSubmit
	evidence, next := p.burning(m, store.Next{RunIn: unreadableAgain, Tries: m.Tries + 1, Unsent: true})
	return store.Completion{
		Message: m, Attempt: unread(attempt), Next: next,
		Evidence: append([]order.Evidence{order.Notice{Attention: order.AttentionUnreadable}}, evidence...),
	}
}

// unread is an attempt that was no call.
func unread(a store.Attempt) store.Attempt {
	a.Outcome, a.Reason, a.CorrelationID = d1client.NotTaken.String(), string(reasonUnreadableContent), a.ID.String()
	return a
}

// reasonUnreadableContent is the reason of an attempt that was no call: what D1 is to be
// sent cannot be written.
const reasonUnreadableContent d1client.Reason = "unreadable-content"

// unreadableAgain is when to look again whether an order can be read: a key may have
// been missing.
const unreadableAgain = 5 * time.Minute

// surroundings is what the store knows about the card that D1 was asked about.
type surroundings struct {
	owners  store.Owners // of the operations that D1 shows
	sibling bool         // an operation without an id may be another order's
	parked  bool         // D1 has told of an operation of the card that found no order
	proven  bool         // a 404 means an unknown card: D1 answers for a card that it has
}

// asked says what follows from D1's answer to the question whether it has an order
// whose outcome is unknown, or how it stands.
func (p Policy) asked(m store.Message, attempt store.Attempt, a d1client.StatusAnswer, around surroundings) store.Completion {
	attempt.Kind, attempt.Outcome = store.AttemptAsk, a.Finding.String()
	c := store.Completion{Message: m, Attempt: note(attempt, a.Reply)}
	if a.Finding == d1client.LookupFailed {
		c.Next = store.Next{RunIn: max(a.RetryAfter, backoff(m.Tries)), Tries: m.Tries + 1, Asks: m.Asks, Negatives: m.Negatives}
		if m.Kind == store.KindAsk {
			c.Next.Done = c.Next.Tries >= questionTries && judge(a.Reason) != verdictHold
		} else {
			c.Evidence = p.stillUnknown(m)
		}
		return c
	}
	c.Others, c.Changes = others(m, a.Operations, around), shownChanges(m, a.Operations, around)
	mine, doubtful := candidates(m, a.Operations, around)
	if len(mine) > 0 {
		c.Attempt.OperationID = mine[0].OperationID
		for _, op := range mine {
			op = op.WithoutCardNumbers(p.Guard)
			report := op.Report(p.Vocabulary)
			report.Now = true
			c.Evidence = append(c.Evidence, report)
			if op.OperationID != "" {
				c.Seen = append(c.Seen, op.OperationID)
			}
			if parcel := shipment(op); parcel != (store.ShipmentUpdate{}) {
				c.Shipments = append(c.Shipments, parcel)
			}
		}
		c.Next.Done = true
		return c
	}
	if m.Kind == store.KindAsk {
		c.Evidence, c.Next = p.notShown(m, a, around.proven)
		return c
	}
	c.Evidence, c.Next = p.notSeen(m, a, doubtful, around.proven)
	return c
}

// shipment is what an operation says of its parcel.
func shipment(op d1client.Operation) store.ShipmentUpdate {
	s := op.Details.Shipment
	return store.ShipmentUpdate{TrackingNumber: s.TrackingNumber, Carrier: s.Carrier, Status: s.Status, TrackingURL: s.TrackingURL}
}

// notShown says what follows when D1 showed nothing of an order that it took: nothing,
// and whoever wants to know asks again. When it shows nothing at all of the card, though
// it had time to, it is asked a second time; then people have to know.
func (p Policy) notShown(m store.Message, a d1client.StatusAnswer, proven bool) ([]order.Evidence, store.Next) {
	missing := len(a.Operations) == 0 && a.Skipped == 0 && (a.Finding == d1client.Found || proven)
	switch {
	case !missing || m.ClaimedAt.Sub(m.FirstSentAt) < p.ResendAfter:
		return nil, store.Next{Done: true}
	case m.Negatives+1 < enoughNegatives:
		return nil, store.Next{RunIn: p.ResendAfter + jitter(p.ResendAfter/10), Asks: m.Asks + 1, Negatives: m.Negatives + 1}
	}
	return []order.Evidence{order.NotShown{}}, store.Next{Done: true}
}

// questionTries is how often a question how an order stands is tried before it is
// dropped: for some minutes.
const questionTries = 12

// enoughNegatives is how many clean answers that D1 does not have an order prove it. No
// more are counted: an order that is not sent again is asked about for ever.
const enoughNegatives = 2

// notSeen says what follows when D1 showed nothing of an order whose outcome is unknown.
func (p Policy) notSeen(m store.Message, a d1client.StatusAnswer, doubtful, proven bool) ([]order.Evidence, store.Next) {
	again := store.Next{RunIn: p.askIn(m.Asks+1, m.SentAgo), Asks: m.Asks + 1}
	if doubtful {
		return append(p.stillUnknown(m), order.Notice{Attention: order.AttentionAmbiguous}), again
	}
	again.Negatives = m.Negatives
	clean := a.Skipped == 0 && (a.Finding == d1client.Found || proven)
	if clean && m.SentAgo >= p.ResendAfter {
		again.Negatives = min(again.Negatives+1, enoughNegatives)
	}
	if again.Negatives < enoughNegatives || m.ResendOff || p.NeverResend {
		return p.stillUnknown(m), again
	}
	evidence, resend := p.burning(m, store.Next{RunIn: p.resendIn(m.Resends), Maybe: store.MaybeClear})
	if resend.GiveUp { // it is asked about for ever all the same
		again.ResendOff = true
		return append(p.stillUnknown(m), evidence...), again
	}
	evidence = append(evidence, order.NotFound{})
	if m.Resends > 0 {
		evidence = append(evidence, order.Notice{Attention: order.AttentionResending})
	}
	return evidence, resend
}

// resendIn is how long to wait before an order is sent again that D1 certainly does not
// have: not at all at first, then ever longer.
func (p Policy) resendIn(resends int) time.Duration {
	if resends == 0 {
		return 0
	}
	wait := min(p.ResendAfter/30<<min(resends-1, 10), maxResendWait)
	return wait + jitter(wait/10)
}

const maxResendWait = time.Hour

// stillUnknown keeps the outcome unknown, and calls for a human when it should
// have been known by now.
func (p Policy) stillUnknown(m store.Message) []order.Evidence {
	evidence := []order.Evidence{order.LostAnswer{}}
	if late := m.SentAgo >= p.ResendAfter; late && (p.NeverResend || m.ResendOff || m.SentAgo >= 2*p.ResendAfter) {
		evidence = append(evidence, order.Notice{Attention: order.AttentionOutcomeUnknown})
	}
	return evidence
}

// candidates finds the operations that make this order's card, the first of
// them first. One that carries our issuerRequestId is ours, whatever else can be
// read of it. One that carries no request's id is ours if it is the only one,
// started after our first send, and can be no other order's.
//
// The answer is doubtful, and then no proof that D1 does not have the order, as
// long as it shows anything else that is not certainly from before our first send:
// D1 may show only the latest operation of a card, and hide ours behind it.
func candidates(m store.Message, operations []d1client.Operation, around surroundings) (mine []d1client.Operation, doubtful bool) {
	var nameless []d1client.Operation
	for _, op := range operations {
		owner, owned := around.owners.Operations[op.OperationID]
		switch {
		case owned && owner.OrderID != m.OrderID && op.IssuerRequestID == m.IssuerRequestID:
			doubtful = true // D1 knows our request, under an operation that is another order's
		case owned && owner.OrderID != m.OrderID && owner.Adopted: // an earlier order's: they are sent one at a time
		case owned && owner.OrderID != m.OrderID && knownBefore(owner, m): // such as a change of an earlier order
		case makesCard(op) && (owned && owner.OrderID == m.OrderID || op.IssuerRequestID == m.IssuerRequestID):
			mine = append(mine, op)
		case !op.StartTime.IsZero() && op.StartTime.Before(m.FirstSentAt.Add(-order.ClockSkew)): // certainly older
		case !owned && op.Operation == store.OperationProduce && op.OperationID != "" && op.IssuerRequestID == "" && !op.NotByCard && !op.StartTime.IsZero():
			nameless = append(nameless, op)
		default:
			doubtful = true
		}
	}
	if len(mine) == 0 && len(nameless) == 1 && !doubtful && !around.sibling {
		mine = nameless
	}
	slices.SortStableFunc(mine, func(a, b d1client.Operation) int { return a.StartTime.Compare(b.StartTime) })
	return mine, len(mine) == 0 && (doubtful || len(nameless) > 0 || around.parked)
}

// knownBefore tells whether an operation was known here before the first send of a
// message: then it is older than all that D1 can have made of that, by whatever clock.
func knownBefore(o store.Owner, m store.Message) bool {
	return !o.Since.IsZero() && o.Since.Before(m.FirstSentAt)
}

// makesCard tells whether an operation makes a card. productionStatus is asked for those
// only, so one of no kind does.
func makesCard(op d1client.Operation) bool {
	return op.Operation == store.OperationProduce || op.Operation == ""
}

// others finds operations that D1 shows under the request of another order, and that are
// not known yet: a second card of that order shows here, too.
func others(m store.Message, operations []d1client.Operation, around surroundings) (list []store.OrderOperation) {
	for _, op := range operations {
		order, known := around.owners.Requests[op.IssuerRequestID]
		_, owned := around.owners.Operations[op.OperationID]
		if known && !owned && order != m.OrderID && op.Operation == store.OperationProduce && op.OperationID != "" {
			list = append(list, store.OrderOperation{OrderID: order, OperationID: op.OperationID})
		}
	}
	return list
}

func note(a store.Attempt, r d1client.Reply) store.Attempt {
	a.Reason, a.HTTPStatus, a.ErrorCode, a.ErrorText = string(r.Reason), r.Status, r.ErrorCode, r.ErrorText
	a.CorrelationID, a.Duration = r.CorrelationID, r.Duration
	return a
}

// askIn is when to ask next, after asks questions, the last byte having left
// sentAgo ago: early and again, since the answer is usually there (2 s, 10 s and
// 50 s at the default of ResendAfter), then when a "no" begins to count, then
// ever more rarely, for as long as it takes.
func (p Policy) askIn(asks int, sentAgo time.Duration) time.Duration {
	early := []time.Duration{p.ResendAfter / 150, p.ResendAfter / 30, p.ResendAfter / 6}
	switch {
	case asks < len(early):
		return early[asks] + jitter(early[asks]/10)
	case sentAgo < p.ResendAfter:
		wait := p.ResendAfter - sentAgo
		return wait + jitter(p.ResendAfter/50)
	}
	wait := min(p.ResendAfter/30<<min(asks-len(early), 10), 2*p.ResendAfter)
	return wait + jitter(wait/10)
}

// Bounds of the back-off between calls of one message.
const (
	backoffFirst = 200 * time.Millisecond
	backoffMax   = time.Minute
)

// backoff is exponential with full jitter: the cap comes before the jitter, so
// that messages which failed together do not come back together.
func backoff(tries int) time.Duration {
	ceiling := min(backoffFirst<<min(tries, 20), backoffMax)
	return backoffFirst/2 + jitter(ceiling)
}

func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}
