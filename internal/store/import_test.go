package store_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

func importOf(n int) []order.Import {
	list := make([]order.Import, n)
	for i := range list {
		list[i] = order.Import{
			CardID: fmt.Sprint("card-", i/2), OperationID: fmt.Sprint("op-", i), IssuerRequestID: fmt.Sprint("r-", i),
			Status: "SUBMITTED", Channel: order.ChannelThales, EndsAt: order.Shipped,
		}
	}
	return list
}

// Two imports of the same file at once take every order over once, two to a card.
func TestImportsAtOnce(t *testing.T) {
	t.Parallel()
	f := open(t)
	const n = 200
	var wg sync.WaitGroup
	taken := make([]int, 2)
	for i := range taken {
		wg.Go(func() {
			outcomes, err := f.Import(t.Context(), issuer, "test", importOf(n), false)
			if err != nil {
				t.Error(err)
			}
			for _, o := range outcomes {
				if len(o.Faults) > 0 {
					t.Error(o.Faults)
				}
				if !o.Known {
					taken[i]++
				}
			}
		})
	}
	wg.Wait()
	if taken[0]+taken[1] != n {
		t.Errorf("taken over %v, want %d in all", taken, n)
	}
	for sql, want := range map[string]int{
		`SELECT count(*) FROM orders WHERE imported`:                                                           n,
		`SELECT count(*) FROM operations WHERE source = 'import'`:                                              n,
		`SELECT count(*) FROM order_events WHERE seq = 1 AND type = 'imported'`:                                n,
		`SELECT count(*) FROM order_state WHERE version = 1 AND status = 'SUBMITTED' AND heard_at IS NOT NULL`: n,
		`SELECT count(*) FROM card_guard WHERE cardinality(order_ids) = 2`:                                     n / 2,
		`SELECT count(*) FROM outbox`:                                                                          0,
		`SELECT count(*) FROM order_payload`:                                                                   0,
	} {
		if got := value[int](f, sql); got != want {
			t.Errorf("%s: %d, want %d", sql, got, want)
		}
	}
}

// A list may name an order twice; a dry run says the same, and leaves nothing.
func TestImportOfRepetitions(t *testing.T) {
	t.Parallel()
	f := open(t)
	list := importOf(4)
	list = append(list, list[0], list[1])
	list[4].OperationID, list[5].CardID = "", "another"
	for _, dryRun := range []bool{true, false} {
		outcomes, err := f.Import(t.Context(), issuer, "test", list, dryRun)
		if err != nil {
			t.Fatal(err)
		}
		if outcomes[0].Known || !outcomes[4].Known || len(outcomes[5].Faults) != 1 || outcomes[5].Faults[0].Code != string(store.ContentDiffers) {
			t.Errorf("dry run %v: %+v", dryRun, outcomes)
		}
		want := 4
		if dryRun {
			want = 0
		}
		if got := value[int](f, `SELECT count(*) FROM orders`); got != want {
			t.Errorf("dry run %v: %d orders, want %d", dryRun, got, want)
		}
	}
}

// An import of a million orders stays as fast as it began: every look is by an index,
// whatever the statistics say.
func TestImportReadsNoTable(t *testing.T) {
	t.Parallel()
	f := open(t)
	plans := &planner{}
	st := f.traced(plans)
	if _, err := st.Import(t.Context(), issuer, "test", importOf(20), false); err != nil {
		t.Fatal(err)
	}
	for _, plan := range plans.explain(f) {
		if strings.Contains(plan, "Seq Scan") {
			t.Errorf("it reads a whole table:\n%s", plan)
		}
	}
}
