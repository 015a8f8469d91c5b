package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"cardorder/internal/d1sim"
)

// The same seed makes the same bureau, and one that is not idempotent keeps to what the
// promise needs.
func TestBureau(t *testing.T) {
	t.Parallel()
	kinds := make(map[bool]int)
	for seed := range uint64(200) {
		b := newBureau(random(seed, "bureau"))
		if !reflect.DeepEqual(b, newBureau(random(seed, "bureau"))) {
			t.Fatalf("seed %d makes two bureaus", seed)
		}
		kinds[b.idempotent]++
		if b.idempotent {
			continue
		}
		// What a worker may be late with its first byte, the network with the last, and D1
		// with showing the order.
		late := b.freeze[1] - b.callTimeout + b.stall[1] + b.lag
		if late > b.resendAfter-time.Second {
			t.Errorf("seed %d: D1 may show an order %v late, resendAfter is %v", seed, late, b.resendAfter)
		}
	}
	if kinds[true] == 0 || kinds[false] == 0 {
		t.Errorf("all bureaus are of one kind: %v", kinds)
	}
}

// Every status of a card has one of an order.
func TestStatusOf(t *testing.T) {
	t.Parallel()
	for _, status := range []string{
		d1sim.CardProdRequested, d1sim.DataException, d1sim.DataPrepared, d1sim.CardProdReady, d1sim.CardProdOngoing,
		d1sim.CardProdException, d1sim.CardProdDone, d1sim.CardShipped, d1sim.CardProdCanceled,
	} {
		if statusOf(d1sim.Card{Status: status, OperationStatus: d1sim.OperationPending}) == "" {
			t.Errorf("%s has none", status)
		}
	}
}

func TestReadLog(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, line string
		wrong      int
	}{
		{"nothing", `{"msg":"attempt","orderId":"01a20fb4-62cc-70f0-81c0-1677026c3a21","durationMs":41}`, 0},
		{"a card number", `{"msg":"attempt","error":"bad pan 4111111111111111"}`, 1},
		{"one with spaces", `4111 1111 1111 1111`, 1},
		{"one in a longer run", `x5555555555554444123`, 1},
		{"a name", `printing for ` + cardholder, 1},
		{"a street", street, 1},
		{"a panic", `panic: runtime error`, 1},
		{"a panic that was caught", `{"level":"ERROR","msg":"panic while handling","panic":"x"}`, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "x.log")
			if err := os.WriteFile(path, []byte("first\n"+c.line+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			v := &verdict{}
			if err := readLog(path, v); err != nil || v.wrong != c.wrong {
				t.Errorf("%d faults (%v), want %d", v.wrong, err, c.wrong)
			}
		})
	}
}
