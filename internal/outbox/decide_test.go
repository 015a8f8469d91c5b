package outbox

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

var (
	us   = uuid.MustParse("01a20a68-0000-7000-8000-000000000001")
	them = uuid.MustParse("01a20a68-0000-7000-8000-000000000002")
	sent = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

func message() store.Message {
	return store.Message{OrderID: us, FirstSentAt: sent, IssuerRequestID: "ours"}
}

func policy() Policy { return Policy{}.withDefaults() }

// What an answer to an order means for the order and for sending it again.
func TestSubmitted(t *testing.T) {
	t.Parallel()
	p := policy()
	answer := func(outcome d1client.Outcome, status int, body bool, code string) d1client.Answer {
		return d1client.Answer{Outcome: outcome, Reply: d1client.Reply{Status: status, HasErrorBody: body, ErrorCode: code}}
	}
	aside := store.Next{Tries: 1, Refused: true, StopAfter: 5, Burns: true}
	aside404 := aside
	aside404.RejectAfter = p.Retry404For
	for _, c := range []struct {
		name     string
		answer   d1client.Answer
		evidence []order.Evidence
		next     store.Next // without RunIn
		waits    bool
	}{
		{"taken", d1client.Answer{Outcome: d1client.Taken, OperationID: "op"}, []order.Evidence{order.Taken{OperationID: "op"}}, store.Next{}, false},
		{"taken without an id", d1client.Answer{Outcome: d1client.Taken}, []order.Evidence{order.Taken{}}, store.Next{}, false},
		{"not taken burns nothing", answer(d1client.NotTaken, 429, false, ""), nil, store.Next{Tries: 1, Unsent: true}, true},
		{"a field is wrong", answer(d1client.Refused, 400, true, "FIELD_INVALID_VALUE"), []order.Evidence{order.Refusal{}}, store.Next{}, false},
		{"perhaps the key is wrong", answer(d1client.Refused, 400, true, "CRYPTO_ERROR"), nil, aside, true},
		{"a 400 that is not D1's", answer(d1client.Refused, 400, false, ""), nil, aside, true},
		{"403", answer(d1client.Refused, 403, true, "X"), nil, aside, true},
		{"404, a moment later perhaps", answer(d1client.Refused, 404, true, "X"), nil, aside404, true},
		{"no answer", answer(d1client.Unknown, 0, false, ""), []order.Evidence{order.LostAnswer{}}, store.Next{Maybe: store.MaybeNow}, true},
		{"conflict", d1client.Answer{Outcome: d1client.Unknown, Reply: d1client.Reply{Status: 409, Reason: d1client.ReasonConflict}},
			[]order.Evidence{order.LostAnswer{}, order.Notice{Attention: order.AttentionConflict}},
			store.Next{Maybe: store.MaybeNow, ResendOff: true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := p.submitted(message(), store.Attempt{}, c.answer)
			if !slices.Equal(got.Evidence, c.evidence) {
				t.Errorf("evidence %#v, want %#v", got.Evidence, c.evidence)
			}
			if waits := got.Next.RunIn > 0; waits != c.waits {
				t.Errorf("tried again in %v", got.Next.RunIn)
			}
			got.Next.RunIn = 0
			if got.Next != c.next {
				t.Errorf("next %+v, want %+v", got.Next, c.next)
			}
		})
	}
}

// Trying ends by the waits that count, and never while it is unknown whether D1 has the
// order: that is asked for ever.
func TestGivingUp(t *testing.T) {
	t.Parallel()
	p := policy()
	m := message()
	m.TryingFor = p.GiveUpAfter
	givenUp := order.Evidence(order.Notice{Attention: order.AttentionGivenUp})

	refused := p.submitted(m, store.Attempt{}, d1client.Answer{Outcome: d1client.Refused, Reply: d1client.Reply{Status: 403}})
	if !refused.Next.GiveUp || !slices.Contains(refused.Evidence, givenUp) {
		t.Errorf("refused for too long: %+v", refused)
	}
	if got := p.unreadable(m, store.Attempt{}); !got.Next.GiveUp || !slices.Contains(got.Evidence, givenUp) {
		t.Errorf("unreadable for too long: %+v", got)
	}
	if got := p.submitted(m, store.Attempt{}, d1client.Answer{Outcome: d1client.NotTaken}); got.Next.GiveUp || got.Next.Burns {
		t.Errorf("D1 was away for long: %+v", got.Next)
	}
	m.MaybeSent, m.SentAgo, m.Negatives, m.Resends = true, p.ResendAfter, 1, 3
	lost := p.asked(m, store.Attempt{}, d1client.StatusAnswer{Finding: d1client.Found}, surroundings{})
	if lost.Next.GiveUp || !lost.Next.ResendOff || lost.Next.RunIn <= 0 || !slices.Contains(lost.Evidence, givenUp) {
		t.Errorf("lost again and again: %+v", lost)
	}
	m.TryingFor = 0
	if got := p.asked(m, store.Attempt{}, d1client.StatusAnswer{Finding: d1client.Found}, surroundings{}); !got.Next.Burns || got.Next.RunIn <= 0 {
		t.Errorf("the wait before the fourth sending: %+v", got.Next)
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	t.Parallel()
	got := policy().submitted(message(), store.Attempt{}, d1client.Answer{
		Outcome: d1client.NotTaken, Reply: d1client.Reply{Status: 429, RetryAfter: 7 * time.Minute},
	})
	if got.Next.RunIn < 7*time.Minute {
		t.Errorf("tried again in %v", got.Next.RunIn)
	}
}

func operation(id, requestID string, start time.Duration) d1client.Operation {
	return d1client.Operation{
		OperationID: id, IssuerRequestID: requestID, Operation: "PRODUCE", Status: "PENDING", StartTime: sent.Add(start),
		Details: d1client.Details{Status: "CARD_PROD_READY"},
	}
}

// Which operation of a card is the order's, and when that cannot be told.
func TestCandidates(t *testing.T) {
	t.Parallel()
	change := d1client.Operation{OperationID: "a", Operation: "UPDATE_ORDER", IssuerRequestID: "theirs", StartTime: sent}
	known := func(o store.Owner) surroundings {
		return surroundings{owners: store.Owners{Operations: map[string]store.Owner{"a": o}}}
	}
	for _, c := range []struct {
		name       string
		operations []d1client.Operation
		around     surroundings
		mine       []string
		doubtful   bool
	}{
		{"none", nil, surroundings{}, nil, false},
		{"ours by id", []d1client.Operation{operation("a", "ours", 0)}, surroundings{}, []string{"a"}, false},
		{"ours by id, D1's clock far behind", []d1client.Operation{operation("a", "ours", -time.Hour)}, surroundings{}, []string{"a"}, false},
		{"ours by id, nothing else readable", []d1client.Operation{{IssuerRequestID: "ours"}}, surroundings{}, []string{""}, false},
		{"our id on another kind of operation", []d1client.Operation{{OperationID: "a", Operation: "REGISTER", IssuerRequestID: "ours", StartTime: sent}}, surroundings{}, nil, true},
		{"a change of ours beside ours", []d1client.Operation{{OperationID: "c", Operation: "UPDATE_ORDER", IssuerRequestID: "ours", StartTime: sent}, operation("a", "ours", 0)},
			surroundings{owners: store.Owners{Operations: map[string]store.Owner{"c": {OrderID: us}}}}, []string{"a"}, false},
		{"a change of ours alone: it hides ours", []d1client.Operation{{OperationID: "c", Operation: "UPDATE_ORDER", IssuerRequestID: "ours", StartTime: sent}},
			surroundings{owners: store.Owners{Operations: map[string]store.Owner{"c": {OrderID: us}}}}, nil, true},
		{"two of ours, the first one first", []d1client.Operation{operation("b", "ours", 2), operation("a", "ours", 1)}, surroundings{}, []string{"a", "b"}, false},
		{"ours beside one without an id", []d1client.Operation{operation("a", "", 0), operation("b", "ours", 0)}, surroundings{}, []string{"b"}, false},
		{"of another request, before us", []d1client.Operation{operation("a", "theirs", -time.Hour)}, surroundings{}, nil, false},
		{"of another request, after us: it may hide ours", []d1client.Operation{operation("a", "theirs", 0)}, surroundings{}, nil, true},
		{"of another request, at an unknown time", []d1client.Operation{{OperationID: "a", Operation: "PRODUCE", IssuerRequestID: "theirs"}}, surroundings{}, nil, true},
		{"another of our orders'", []d1client.Operation{operation("a", "theirs", 0)}, surroundings{owners: store.Owners{Operations: map[string]store.Owner{"a": {OrderID: them, Adopted: true}}}}, nil, false},
		{"another of our orders', and not the first: it may hide ours", []d1client.Operation{operation("a", "theirs", 0)}, surroundings{owners: store.Owners{Operations: map[string]store.Owner{"a": {OrderID: them}}}}, nil, true},
		{"a change of another of our orders", []d1client.Operation{change}, known(store.Owner{OrderID: them, Since: sent}), nil, true},
		{"a change of another of our orders, known before us", []d1client.Operation{change}, known(store.Owner{OrderID: them, Since: sent.Add(-1)}), nil, false},
		{"the same under our id", []d1client.Operation{{OperationID: "a", Operation: "UPDATE_ORDER", IssuerRequestID: "ours", StartTime: sent}}, known(store.Owner{OrderID: them, Since: sent.Add(-1)}), nil, true},
		{"a second card of another of our orders, known before us", []d1client.Operation{operation("a", "theirs", 0)}, known(store.Owner{OrderID: them, Since: sent.Add(-1)}), nil, false},
		{"the only one without an id", []d1client.Operation{operation("a", "", 0)}, surroundings{}, []string{"a"}, false},
		{"without an id, a little skew", []d1client.Operation{operation("a", "", -time.Minute)}, surroundings{}, []string{"a"}, false},
		{"without an id, from before", []d1client.Operation{operation("a", "", -time.Hour)}, surroundings{}, nil, false},
		{"without an id, at an unknown time", []d1client.Operation{{OperationID: "a", Operation: "PRODUCE"}}, surroundings{}, nil, true},
		{"without an id and unreadable", []d1client.Operation{{Operation: "PRODUCE", StartTime: sent}}, surroundings{}, nil, true},
		{"without an id, perhaps a sibling's", []d1client.Operation{operation("a", "", 0)}, surroundings{sibling: true}, nil, true},
		{"without an id, another order's", []d1client.Operation{operation("a", "", 0)}, surroundings{owners: store.Owners{Operations: map[string]store.Owner{"a": {OrderID: them, Adopted: true}}}}, nil, false},
		{"without an id, another order's, and not the first", []d1client.Operation{operation("a", "", 0)}, surroundings{owners: store.Owners{Operations: map[string]store.Owner{"a": {OrderID: them}}}}, nil, true},
		{"without an id, known as ours", []d1client.Operation{operation("a", "", -time.Hour)}, surroundings{owners: store.Owners{Operations: map[string]store.Owner{"a": {OrderID: us, Adopted: true}}}}, []string{"a"}, false},
		{"two without an id", []d1client.Operation{operation("a", "", 0), operation("b", "", 0)}, surroundings{}, nil, true},
		{"ours by id but known as another's", []d1client.Operation{operation("a", "ours", 0)}, surroundings{owners: store.Owners{Operations: map[string]store.Owner{"a": {OrderID: them, Adopted: true}}}}, nil, true},
		{"an id that cannot be ours", []d1client.Operation{{OperationID: "a", Operation: "PRODUCE", NotByCard: true, StartTime: sent}}, surroundings{}, nil, true},
		{"not a production, after us", []d1client.Operation{{OperationID: "a", Operation: "ACTIVATE", StartTime: sent}}, surroundings{}, nil, true},
		{"not a production, before us", []d1client.Operation{{OperationID: "a", Operation: "ACTIVATE", StartTime: sent.Add(-time.Hour)}}, surroundings{}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			mine, doubtful := candidates(message(), c.operations, c.around)
			var ids []string
			for _, op := range mine {
				ids = append(ids, op.OperationID)
			}
			if !slices.Equal(ids, c.mine) || doubtful != c.doubtful {
				t.Errorf("mine %v doubtful %v, want %v %v", ids, doubtful, c.mine, c.doubtful)
			}
		})
	}
}

// An operation under the request of another order, which is not known yet, is told of: a
// second card of that order shows here, too.
func TestOperationsOfOtherOrders(t *testing.T) {
	t.Parallel()
	around := surroundings{owners: store.Owners{
		Operations: map[string]store.Owner{"known": {OrderID: them, Adopted: true}},
		Requests:   map[string]uuid.UUID{"theirs": them, "ours": us},
	}}
	c := policy().asked(message(), store.Attempt{}, d1client.StatusAnswer{Finding: d1client.Found, Operations: []d1client.Operation{
		operation("known", "theirs", -time.Hour), operation("second", "theirs", -time.Hour), operation("mine", "ours", 0),
		operation("nobody's", "unknown", -time.Hour), {IssuerRequestID: "theirs", Operation: "PRODUCE"}, {OperationID: "other", IssuerRequestID: "theirs", Operation: "ACTIVATE"},
	}}, around)
	if want := []store.OrderOperation{{OrderID: them, OperationID: "second"}}; !slices.Equal(c.Others, want) || !slices.Equal(c.Seen, []string{"mine"}) {
		t.Errorf("of others %v, ours %v", c.Others, c.Seen)
	}
}

// What follows from the question how an order stands.
func TestAskedHowItStands(t *testing.T) {
	t.Parallel()
	p := policy()
	m := message()
	m.Kind = store.KindAsk
	ask := func(answer d1client.StatusAnswer) store.Completion {
		return p.asked(m, store.Attempt{}, answer, surroundings{})
	}
	found := ask(d1client.StatusAnswer{Finding: d1client.Found, Operations: []d1client.Operation{operation("b", "ours", 2), operation("a", "ours", 1)}})
	if !found.Next.Done || !slices.Equal(found.Seen, []string{"a", "b"}) || len(found.Evidence) != 2 {
		t.Errorf("two operations of the order: %+v", found)
	}
	for _, e := range found.Evidence {
		if r, ok := e.(order.Report); !ok || !r.Now || r.Status != "CARD_PROD_READY" {
			t.Errorf("evidence %#v", e)
		}
	}
	doubtful := []d1client.Operation{operation("a", "theirs", 0)}
	for name, answer := range map[string]d1client.StatusAnswer{
		"nothing":    {Finding: d1client.Found},
		"a 404":      {Finding: d1client.CardNotFound},
		"a stranger": {Finding: d1client.Found, Operations: doubtful},
	} {
		if got := ask(answer); !got.Next.Done || len(got.Evidence) > 0 || len(got.Seen) > 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	failed := d1client.StatusAnswer{Finding: d1client.LookupFailed}
	if got := ask(failed); got.Next.Done || got.Next.RunIn <= 0 || got.Next.Tries != 1 || len(got.Evidence) > 0 {
		t.Errorf("no answer: %+v", got)
	}
	m.Tries = questionTries - 1
	if got := ask(failed); !got.Next.Done {
		t.Errorf("no answer for long: %+v", got)
	}
}

// What D1 shows of parcels is kept, and an operation of another kind makes no card even
// if it is the order's.
func TestAskedShowsParcels(t *testing.T) {
	t.Parallel()
	m := message()
	m.Kind = store.KindAsk
	shipped := operation("a", "", 0)
	shipped.Details.Shipment = d1client.Shipment{TrackingNumber: "T1", Carrier: "ups", Status: "IN_TRANSIT", Message: "for Ada", TrackingURL: "https://ups.example/T1"}
	change := operation("change", "ours", 0)
	change.Operation = "UPDATE_ORDER"
	around := surroundings{owners: store.Owners{Operations: map[string]store.Owner{
		"a": {OrderID: us, Adopted: true}, "change": {OrderID: us},
	}}}
	c := policy().asked(m, store.Attempt{}, d1client.StatusAnswer{Finding: d1client.Found, Operations: []d1client.Operation{change, shipped}}, around)
	if !slices.Equal(c.Seen, []string{"a"}) || len(c.Evidence) != 1 {
		t.Errorf("seen %v with evidence %#v", c.Seen, c.Evidence)
	}
	if want := []store.ShipmentUpdate{{TrackingNumber: "T1", Carrier: "ups", Status: "IN_TRANSIT", TrackingURL: "https://ups.example/T1"}}; !slices.Equal(c.Shipments, want) {
		t.Errorf("parcels %+v", c.Shipments)
	}

	// A card number is not kept.
	p := policy()
	p.Guard = order.PANGuard{BINs: []string{"411111"}}
	shipped.Details.ProductionSite, shipped.Details.Shipment.TrackingNumber = "4111111111111111", "4111111111111111"
	c = p.asked(m, store.Attempt{}, d1client.StatusAnswer{Finding: d1client.Found, Operations: []d1client.Operation{shipped}}, around)
	if text := fmt.Sprintf("%+v %+v", c.Evidence, c.Shipments); strings.Contains(text, "4111111111111111") || !strings.Contains(text, "ups") {
		t.Errorf("a card number in what D1 shows: %s", text)
	}
}

// An order that D1 took and clearly does not show is asked about a second time before
// anybody is told, and nobody is told of less than that.
func TestNotShown(t *testing.T) {
	t.Parallel()
	old := policy().ResendAfter
	empty := d1client.StatusAnswer{Finding: d1client.Found}
	notFound := d1client.StatusAnswer{Finding: d1client.CardNotFound}
	for _, c := range []struct {
		name   string
		answer d1client.StatusAnswer
		proven bool
		age    time.Duration
		before int
		again  bool
		told   bool
	}{
		{"empty", empty, false, old, 0, true, false},
		{"empty a second time", empty, false, old, 1, false, true},
		{"a 404 that proves something", notFound, true, old, 1, false, true},
		{"one that does not", notFound, false, old, 1, false, false},
		{"D1 may need longer to show it", empty, false, old - 1, 1, false, false},
		{"another order hides it", d1client.StatusAnswer{Finding: d1client.Found, Operations: []d1client.Operation{operation("a", "theirs", 0)}}, false, old, 1, false, false},
		{"a part could not be read", d1client.StatusAnswer{Finding: d1client.Found, Skipped: 1}, false, old, 1, false, false},
		{"no answer", d1client.StatusAnswer{Finding: d1client.LookupFailed}, false, old, 1, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := message()
			m.Kind, m.Negatives, m.ClaimedAt = store.KindAsk, c.before, sent.Add(c.age)
			got := policy().asked(m, store.Attempt{}, c.answer, surroundings{proven: c.proven})
			if told := slices.Contains(got.Evidence, order.Evidence(order.NotShown{})); told != c.told || got.Next.Done == c.again {
				t.Errorf("told %v, next %+v", told, got.Next)
			}
			if c.again && got.Next.RunIn <= 0 {
				t.Errorf("asked again at once: %+v", got.Next)
			}
			if want := 1; c.again && got.Next.Negatives != want {
				t.Errorf("%d negatives, want %d", got.Next.Negatives, want)
			}
		})
	}
}

// When an order whose outcome is unknown may be sent again: after two clean
// negatives later than ResendAfter, and never otherwise.
func TestResendRule(t *testing.T) {
	t.Parallel()
	late := policy().ResendAfter
	found := d1client.StatusAnswer{Finding: d1client.Found}
	notFound := d1client.StatusAnswer{Finding: d1client.CardNotFound}
	failed := d1client.StatusAnswer{Finding: d1client.LookupFailed}
	unreadable := d1client.StatusAnswer{Finding: d1client.Found, Skipped: 1}
	doubtful := d1client.StatusAnswer{Finding: d1client.Found, Operations: []d1client.Operation{operation("a", "", 0), operation("b", "", 0)}}
	for _, c := range []struct {
		name      string
		answer    d1client.StatusAnswer
		proven    bool
		sentAgo   time.Duration
		before    int // negatives so far
		resendOff bool
		never     bool
		negatives int
		resend    bool
	}{
		{"early, empty", found, false, late - 1, 0, false, false, 0, false},
		{"late, the first time", found, false, late, 0, false, false, 1, false},
		{"late, the second time", found, false, late, 1, false, false, 0, true},
		{"late 404, proven", notFound, true, late, 1, false, false, 0, true},
		{"late 404, unproven", notFound, false, late, 1, false, false, 1, false},
		{"early 404, proven", notFound, true, late - 1, 1, false, false, 1, false},
		{"no answer", failed, false, late, 1, false, false, 1, false},
		{"a part could not be read", unreadable, false, late, 1, false, false, 1, false},
		{"it cannot be told", doubtful, false, late, 1, false, false, 0, false},
		{"after a conflict", found, false, late, 1, true, false, 2, false},
		{"afterUnknown: wait", found, false, late, 1, false, true, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := message()
			m.MaybeSent, m.SentAgo, m.Negatives, m.ResendOff = true, c.sentAgo, c.before, c.resendOff
			p := policy()
			p.NeverResend = c.never
			got := p.asked(m, store.Attempt{}, c.answer, surroundings{proven: c.proven})
			resend := got.Next.Maybe == store.MaybeClear
			if resend != c.resend || got.Next.Negatives != c.negatives {
				t.Errorf("resend %v with %d negatives, want %v with %d", resend, got.Next.Negatives, c.resend, c.negatives)
			}
			if resend != slices.Contains(got.Evidence, order.Evidence(order.NotFound{})) {
				t.Errorf("the order is not told the same: %#v", got.Evidence)
			}
			if !resend && got.Next.RunIn <= 0 {
				t.Error("nothing will ask again")
			}
		})
	}
}

// Questions come early and again, then when a "no" begins to count, then ever
// more rarely, but always.
func TestAskIn(t *testing.T) {
	t.Parallel()
	p := policy()
	within := func(what string, got, low, high time.Duration) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s: %v, want %v to %v", what, got, low, high)
		}
	}
	within("first", p.askIn(0, 0), 2*time.Second, 3*time.Second)
	within("second", p.askIn(1, 0), 10*time.Second, 12*time.Second)
	within("third", p.askIn(2, 0), 50*time.Second, 56*time.Second)
	within("then when it counts", p.askIn(3, time.Minute), 4*time.Minute, 4*time.Minute+7*time.Second)
	within("soon again for the second negative", p.askIn(4, p.ResendAfter), 10*time.Second, 30*time.Second)
	for asks := range 100 {
		within(fmt.Sprintf("question %d", asks), p.askIn(asks, time.Hour), time.Second, 3*p.ResendAfter)
	}
}

func TestBackoffIsCapped(t *testing.T) {
	t.Parallel()
	for tries := range 100 {
		if got := backoff(tries); got < backoffFirst/2 || got > backoffMax+backoffFirst {
			t.Errorf("after %d tries: %v", tries, got)
		}
	}
}
