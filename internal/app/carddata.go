package app

import (
	"context"
	"slices"
	"time"

	"cardorder/internal/api"
)

const (
	// keysPoll is how often it is looked whether a key of D1 has gone out of use.
	keysPoll = 5 * time.Second
	// cardDataEvery is how often orders are looked through although no key has: a replica
	// of another configuration may have accepted some meanwhile.
	cardDataEvery = time.Hour
)

// watchCardData marks orders whose card data was encrypted under a key of D1 that is not in
// use any more, before they are sent: at the start, when a key goes out of use, and now and
// then. It ends with ctx.
func (s *Service) watchCardData(ctx context.Context, issuers []api.Issuer) {
	type looked struct {
		keys []string
		at   time.Time
	}
	done := make(map[string]looked, len(issuers))
	failing := false
	ticker := time.NewTicker(keysPoll)
	defer ticker.Stop()
	for {
		for i := range issuers {
			in := &issuers[i]
			now := time.Now()
			keys := in.Encrypter.KeyIDs(now)
			if last := done[in.ID]; slices.Equal(last.keys, keys) && now.Sub(last.at) < cardDataEvery && !last.at.IsZero() {
				continue
			}
			n, err := s.store.MarkCardDataNeeded(ctx, in.ID, keys)
			switch {
			case err != nil && ctx.Err() == nil && !failing:
				s.log.Error("looking for orders that need other card data fails; it is tried again", "issuerId", in.ID, "error", err)
			case err == nil && n > 0:
				s.log.Warn("orders need other card data: D1's key for it is not in use any more", "issuerId", in.ID, "orders", n)
			}
			if failing = err != nil; !failing {
				done[in.ID] = looked{keys, now}
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}
