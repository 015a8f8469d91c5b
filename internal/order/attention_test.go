package order_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cardorder/internal/order"
)

// lived advances a state that was just accepted by evidence, one after the other.
func lived(evidence ...order.Evidence) order.State {
	s := order.NewState(order.Shipped)
	for _, e := range evidence {
		s, _ = order.Advance(s, order.Clock{}, e)
	}
	return s
}

func reports(operationID, status string, operation order.OperationStatus) order.Report {
	return order.Report{OperationID: operationID, Operation: operation, Status: status}
}

// What a person has dealt with comes again only when its cause does.
func TestAcknowledge(t *testing.T) {
	t.Parallel()
	cleared := func(a order.Attention, operations ...string) order.Acknowledge {
		return order.Acknowledge{Attention: a, Operations: operations}
	}
	taken := order.Taken{OperationID: "op"}
	failed := reports("op", "", order.OperationFailed)
	second := reports("second", "CARD_PROD_READY", order.OperationPending)
	both := order.Operations{IDs: []string{"op", "second"}}
	ready := reports("op", "CARD_PROD_READY", order.OperationPending)
	exception := reports("op", "DATA_EXCEPTION", order.OperationPending)
	unknown := reports("op", "CARD_PROD_MELTED", order.OperationPending)
	for name, test := range map[string]struct {
		attention order.Attention
		evidence  []order.Evidence
		want      bool // whether it is there at the end
		done      bool // whether it counts as dealt with
	}{
		"a status": {order.AttentionFailed, []order.Evidence{taken, failed, cleared(order.AttentionFailed)}, false, true},
		"the same word again": {order.AttentionFailed,
			[]order.Evidence{taken, failed, cleared(order.AttentionFailed), failed, order.Details{}}, false, true},
		"twice":             {order.AttentionFailed, []order.Evidence{taken, failed, cleared(order.AttentionFailed), cleared(order.AttentionFailed)}, false, true},
		"what is not there": {order.AttentionSilent, []order.Evidence{taken, cleared(order.AttentionSilent), order.Silence{}}, true, false},
		"a status that was left": {order.AttentionException,
			[]order.Evidence{taken, exception, cleared(order.AttentionException), ready}, false, false},
		"a status that came again": {order.AttentionException,
			[]order.Evidence{taken, exception, cleared(order.AttentionException), ready, reports("op", "CARD_PROD_EXCEPTION", order.OperationPending)}, true, false},
		"trouble at another point": {order.AttentionException,
			[]order.Evidence{taken, exception, cleared(order.AttentionException), reports("op", "CARD_PROD_EXCEPTION", order.OperationPending)}, true, false},
		"a return that is told twice": {order.AttentionReturned,
			[]order.Evidence{carrier("T1", order.Returned), cleared(order.AttentionReturned), back("R1"), back(""), back("T1")}, false, true},
		"one more return": {order.AttentionReturned,
			[]order.Evidence{carrier("T1", order.Returned), cleared(order.AttentionReturned), carrier("T2", order.Returned)}, true, false},
		"rejected again": {order.AttentionRejected,
			[]order.Evidence{order.Refusal{}, cleared(order.AttentionRejected), order.Retry{}, order.Refusal{}}, true, false},
		"silence that goes on": {order.AttentionSilent,
			[]order.Evidence{taken, order.Silence{}, cleared(order.AttentionSilent), order.Silence{}}, false, true},
		"silence after news": {order.AttentionSilent,
			[]order.Evidence{taken, order.Silence{}, cleared(order.AttentionSilent),
				ready, order.Silence{}}, true, false},
		"silence that ended with the order": {order.AttentionSilent,
			[]order.Evidence{taken, order.Silence{}, failed}, false, false},
		"the same second card": {order.AttentionSecondCard,
			[]order.Evidence{taken, second, cleared(order.AttentionSecondCard, "op", "second"), second, both, second}, false, true},
		"a third card": {order.AttentionSecondCard,
			[]order.Evidence{taken, second, cleared(order.AttentionSecondCard, "op", "second"), reports("third", "", order.OperationPending)}, true, true},
		"a third card seen with others": {order.AttentionSecondCard,
			[]order.Evidence{taken, second, cleared(order.AttentionSecondCard, "op", "second"), order.Operations{IDs: []string{"op", "second", "third"}}}, true, true},
		"an unknown status again": {order.AttentionUnknownStatus,
			[]order.Evidence{taken, unknown, cleared(order.AttentionUnknownStatus), unknown}, false, true},
		"another unknown status after a step": {order.AttentionUnknownStatus,
			[]order.Evidence{taken, unknown, cleared(order.AttentionUnknownStatus), ready, unknown}, true, false},
		"a hold by rule": {order.AttentionHeldByRule, []order.Evidence{order.Hold{Reason: order.HeldByRule}}, true, false},
		"a hold by rule that a person took over": {order.AttentionHeldByRule,
			[]order.Evidence{order.Hold{Reason: order.HeldByRule}, order.Hold{Reason: order.HeldByPerson}}, false, false},
		"a hold by rule that was lifted": {order.AttentionHeldByRule,
			[]order.Evidence{order.Hold{Reason: order.HeldByRule}, order.Release{}}, false, false},
		"card data of a held order": {order.AttentionCardDataNeeded,
			[]order.Evidence{order.Hold{Reason: order.HeldByPerson}, order.Notice{Attention: order.AttentionCardDataNeeded}, order.Release{}}, true, false},
		"card data of an order at D1": {order.AttentionCardDataNeeded,
			[]order.Evidence{order.Notice{Attention: order.AttentionCardDataNeeded}, taken}, false, false},
		"a returned card": {order.AttentionReturned, []order.Evidence{order.Notice{Attention: order.AttentionReturned}, taken}, false, false},
	} {
		s := lived(test.evidence...)
		if got := slices.Contains(s.Attention, test.attention); got != test.want || s.HasAcknowledged(test.attention) != test.done {
			t.Errorf("%s: %v, dealt with %v", name, s.Attention, s.Acknowledged)
		}
	}
}

// Whatever is known of an order, hearing all of it once more raises nothing that a person
// has dealt with, and moves nothing.
func TestAcknowledgedIsNotRaisedByRepeats(t *testing.T) {
	t.Parallel()
	statuses := []string{"", "CARD_PROD_REQUESTED", "DATA_EXCEPTION", "CARD_PROD_READY", "CARD_PROD_ONGOING", "CARD_PROD_EXCEPTION",
		"CARD_PROD_CANCELED", "CARD_PROD_DONE", "CARD_SHIPPED", "CARD_PROD_MELTED"}
	rapid.Check(t, func(t *rapid.T) {
		evidence := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) order.Evidence {
			return order.Report{
				OperationID: rapid.SampledFrom([]string{"op", "second"}).Draw(t, "operation"),
				Operation:   rapid.SampledFrom([]order.OperationStatus{order.OperationPending, order.OperationFailed}).Draw(t, "state"),
				Status:      rapid.SampledFrom(statuses).Draw(t, "status"),
			}
		}), 1, 12).Draw(t, "reports")
		operations := []string{"op"}
		if slices.ContainsFunc(evidence, func(e order.Evidence) bool { return e.(order.Report).OperationID == "second" }) {
			operations = append(operations, "second")
		}
		s := lived(append([]order.Evidence{order.Taken{OperationID: "op"}}, evidence...)...)
		for _, a := range slices.Clone(s.Attention) {
			s, _ = order.Advance(s, order.Clock{}, order.Acknowledge{Attention: a, Operations: operations})
		}
		if len(s.Attention) > 0 {
			t.Fatalf("left after all was cleared: %v", s.Attention)
		}
		for _, e := range rapid.Permutation(evidence).Draw(t, "again") {
			next, changed := order.Advance(s, order.Clock{}, e, order.Operations{IDs: operations})
			if changed {
				t.Fatalf("%+v changed %+v to %+v", e, s, next)
			}
		}
	})
}

// Every attention has all its texts, and every kind of actor is one of three.
func TestAdvice(t *testing.T) {
	t.Parallel()
	check := func(code string, a order.Advice) {
		t.Helper()
		if a.Detail == "" || a.Next == "" || !slices.Contains([]string{"support", "operator", "core-banking"}, a.Actor) {
			t.Errorf("%s: %+v", code, a)
		}
	}
	for _, a := range order.Attentions() {
		check(string(a), a.Advice())
		if !order.KnownAttention(a) {
			t.Errorf("%s is not known", a)
		}
	}
	for _, a := range order.LaneAttentions {
		check(string(a), a.Advice())
	}
	if order.KnownAttention("nothing") {
		t.Error("nothing is known")
	}
}
