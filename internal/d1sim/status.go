package d1sim

import (
	"net/http"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"
)

// productionStatus tells of the orders of a card, as the latest notification of each did.
func (s *Sim) productionStatus(q *inquiry) answer {
	if refusal := s.authorize(q); refusal != nil {
		return *refusal
	}
	if !cardIDPattern.MatchString(chi.URLParam(q.Request, "cardId")) {
		return q.refuse(http.StatusBadRequest, invalidFormat, "cardId")
	}
	if !correlationFits(q.Request) {
		return q.refuse(http.StatusBadRequest, invalidFormat, "x-correlation-id")
	}
	seen := s.visible(q.record.IssuerID, q.record.CardID, q.settings)
	if len(seen) == 0 && q.settings.UnknownCard == UnknownCardNotFound {
		return q.refuse(http.StatusNotFound, "", "card is not known")
	}
	return jsonAnswer(http.StatusOK, operations{seen})
}

// visible lists what productionStatus shows of a card, the oldest first.
func (s *Sim) visible(issuerID, cardID string, set Settings) []Operation {
	acceptedUntil := time.Now().Add(-time.Duration(set.StatusLag))

	s.mu.Lock()
	defer s.mu.Unlock()
	seen := []Operation{}
	for _, c := range s.book.byCard[cardKey{issuerID, cardID}] {
		if !c.acceptedAt.After(acceptedUntil) {
			seen = append(seen, c.op.placed(set, set.StatusWithoutRequestIDs))
		}
	}
	if set.StatusWithChanges {
		for _, ch := range s.book.changes {
			if ch.issuerID == issuerID && ch.op.CardID == cardID && !ch.takenAt.After(acceptedUntil) {
				seen = append(seen, ch.op.placed(set, set.StatusWithoutRequestIDs))
			}
		}
		slices.SortStableFunc(seen, func(a, b Operation) int { return a.StartTime.Compare(b.StartTime) })
	}
	if set.StatusLatestOnly && len(seen) > 1 {
		seen = seen[len(seen)-1:]
	}
	return seen
}
