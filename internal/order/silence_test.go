package order_test

import (
	"slices"
	"testing"
	"time"

	"cardorder/internal/order"
)

// What raises and ends the attentions of an order that D1 has nothing to say of, and
// whether that was time alone.
func TestSilence(t *testing.T) {
	t.Parallel()
	report := func(status string) order.Report {
		return order.Report{OperationID: "op", Operation: order.OperationPending, Status: status, Now: true}
	}
	for _, c := range []struct {
		name     string
		before   []order.Evidence
		evidence []order.Evidence
		want     []order.Attention
		changed  bool
		time     bool
	}{
		{"silence", []order.Evidence{report("CARD_PROD_READY")}, []order.Evidence{report("CARD_PROD_READY"), order.Silence{}}, []order.Attention{order.AttentionSilent}, true, true},
		{"beside something else", []order.Evidence{report("CARD_PROD_READY"), order.Notice{Attention: order.AttentionSecondCard}}, []order.Evidence{order.Silence{}},
			[]order.Attention{order.AttentionSecondCard, order.AttentionSilent}, true, true},
		{"and news", []order.Evidence{report("CARD_PROD_READY")}, []order.Evidence{report("CARD_PROD_DONE"), order.Silence{}}, nil, true, false},
		{"and a word that nobody knows", []order.Evidence{report("CARD_PROD_READY")}, []order.Evidence{report("CARD_PROD_POLISHED"), order.Silence{}},
			[]order.Attention{order.AttentionUnknownStatus}, true, false},
		{"of an order that has arrived", []order.Evidence{report("CARD_SHIPPED")}, []order.Evidence{order.Silence{}}, nil, false, false},
		{"not shown", []order.Evidence{report("CARD_PROD_READY")}, []order.Evidence{order.NotShown{}}, []order.Attention{order.AttentionNotShown}, true, false},
		{"not shown, of one that D1 never took", nil, []order.Evidence{order.NotShown{}}, nil, false, false},
		{"not shown, of one that has arrived", []order.Evidence{report("CARD_SHIPPED")}, []order.Evidence{order.NotShown{}}, nil, false, false},
		{"not shown, and then shown as it was", []order.Evidence{report("CARD_PROD_READY")}, []order.Evidence{order.NotShown{}, report("CARD_PROD_READY")}, nil, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
			s, _ := order.Advance(order.NewState(order.Shipped), order.Clock{Now: now}, c.before...)
			next, changed := order.Advance(s, order.Clock{Now: now.Add(time.Hour)}, c.evidence...)
			if !slices.Equal(next.Attention, c.want) || changed != c.changed || next.OnlyTime(s) != c.time {
				t.Errorf("%v, changed %v, by time alone %v", next.Attention, changed, next.OnlyTime(s))
			}
		})
	}
}
