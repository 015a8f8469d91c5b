package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/internal/store"
)

// A lane's backlog is its own, by class, and is read by indexes.
func TestBacklog(t *testing.T) {
	t.Parallel()
	f := open(t)
	message := func(n int, lane, class, columns, values string) {
		t.Helper()
		f.exec(`INSERT INTO outbox (lane, kind, issuer_id, order_id, card_id, class`+columns+`)
			SELECT $1, 'submit', $1, gen_random_uuid(), gen_random_uuid(), `+class+values+` FROM generate_series(1, $2)`, lane, n)
	}
	message(20000, "d1/OTHER00001", "1", ", run_at", ", now()")
	message(3, lane, "0", ", run_at", ", now() - interval '90 s'")
	message(2, lane, "0", ", run_at", ", now() + interval '1 h'")
	message(4, lane, "0", ", refused_at, run_at", ", now(), now() + interval '1 h'")
	message(1, lane, "1", ", run_at", ", 'infinity'")
	message(5, lane, "2", ", maybe_sent_at, run_at", ", now(), now() - interval '5 s'")
	message(1, lane, "2", ", run_at", ", 'infinity'")
	message(6, lane, "1", ", run_at, claim_token, leased_until", ", now() - interval '1 h', gen_random_uuid(), now() + interval '1 min'")
	message(1, lane, "1", ", run_at, claim_token, leased_until", ", now() - interval '1 h', gen_random_uuid(), now() - interval '1 s'")
	f.exec(`VACUUM ANALYZE outbox`)
	plans := &planner{}
	st := f.traced(plans)
	got, err := st.Backlog(t.Context(), lane)
	if err != nil {
		t.Fatal(err)
	}
	if single, question := got.Classes[0].OldestDue, got.Classes[2].OldestDue; single < 90*time.Second || question < 5*time.Second || question >= single {
		t.Errorf("the oldest are due since %v and %v", single, question)
	}
	got.Classes[0].OldestDue, got.Classes[1].OldestDue, got.Classes[2].OldestDue = 0, 0, 0
	if !slices.Equal(got.Classes, []store.ClassBacklog{
		{Class: store.ClassSingle, Messages: 9, Due: 3}, {Class: store.ClassBatch, Messages: 8, Due: 1}, {Class: store.ClassQuestion, Messages: 6, Due: 5},
	}) || got.Unknown != 5 || got.Refused != 4 || got.GivenUp != 2 {
		t.Errorf("the backlog is %+v", got)
	}
	for _, plan := range plans.explain(f) {
		if strings.Contains(plan, "Seq Scan") {
			t.Errorf("it reads a whole table:\n%s", plan)
		}
	}
	if got, err := st.Backlog(t.Context(), "d1/NOBODY0001"); err != nil || len(got.Classes) != len(store.Classes) || got.Classes[2] != (store.ClassBacklog{Class: store.ClassQuestion}) {
		t.Errorf("the backlog of nobody is %+v, %v", got, err)
	}
}
