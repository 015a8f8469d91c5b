package app

import (
	"context"
	"log/slog"
	"time"

	"cardorder/internal/config"
	"cardorder/internal/store"
)

// Restored marks every message of a database that was restored, so that D1 is asked
// before anything is sent. The service need not run.
func Restored(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	st, err := openStore(ctx, cfg, log, store.Config{})
	if err != nil {
		return err
	}
	defer st.Close()
	if err := checkSchema(ctx, st); err != nil {
		return err
	}
	return st.Restored(ctx, longestLease(cfg))
}

// longestLease is for how long a worker may hold a claim that it made just now: twice
// the deadline of a call.
func longestLease(cfg *config.Config) time.Duration {
	var longest time.Duration
	for i := range cfg.Issuers {
		longest = max(longest, cfg.Issuers[i].Sending.CallTimeout)
	}
	return 2 * longest
}
