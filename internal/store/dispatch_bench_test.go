package store_test

import (
	"fmt"
	"testing"
	"time"

	"cardorder/internal/pgrun"
	"cardorder/internal/store"
)

// BenchmarkDispatch claims orders and stores that D1 took them, in batches, on a
// server that waits for the disk: what the database costs an order on its way to D1.
// Claims and completions overlap, as they do in a lane.
func BenchmarkDispatch(b *testing.B) {
	for _, size := range []int{16, 100} {
		b.Run(fmt.Sprint("batch=", size), func(b *testing.B) { benchmarkDispatch(b, size) })
	}
}

func benchmarkDispatch(b *testing.B, size int) {
	b.Helper()
	server, err := pgrun.Start(b.Context(), pgrun.Config{Fsync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = server.Stop() })
	url := server.SocketURL("")
	if err := store.Migrate(b.Context(), url); err != nil {
		b.Fatal(err)
	}
	keyset, err := store.NewSealingKeyset()
	if err != nil {
		b.Fatal(err)
	}
	sealer, err := store.NewSealer(keyset)
	if err != nil {
		b.Fatal(err)
	}
	st, err := store.Open(b.Context(), store.Config{URL: url, Seal: sealer, HashKeys: store.HashKeys{Current: make([]byte, 32)}})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	w, _, err := st.OpenBatch(b.Context(), upload)
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		name := fmt.Sprint("bench-", i)
		if _, err = w.Stored(b.Context(), int64(i+1), []byte(name)); err == nil {
			err = w.Accept(b.Context(), int64(i+1), acceptance(name, name, ""))
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if _, err := w.Finish(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	claimed := make(chan []store.Message, 1)
	go func() {
		defer close(claimed)
		for left := b.N; left > 0; {
			messages, err := st.Claim(b.Context(), store.ClaimRequest{Lane: lane, Class: store.ClassBatch, Limit: size, Lease: time.Minute})
			if err != nil || len(messages) == 0 {
				b.Errorf("claimed %d: %v", len(messages), err)
				return
			}
			left -= len(messages)
			claimed <- messages
		}
	}()
	for messages := range claimed {
		done := make([]store.Completion, len(messages))
		for i, m := range messages {
			done[i] = taken(m, "op-"+m.OrderID.String())
		}
		if err := st.Complete(b.Context(), done); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "orders/s")
}
