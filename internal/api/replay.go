package api

import (
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// replayView is what became of a notification that was applied again.
type replayView struct {
	ID      int64         `json:"id"`
	Outcome store.Outcome `json:"outcome"`
	OrderID string        `json:"orderId,omitempty"`
}

// replaysView is the same of many.
type replaysView struct {
	Replayed   int                   `json:"replayed"`
	Outcomes   map[store.Outcome]int `json:"outcomes"`
	NextCursor string                `json:"nextCursor,omitempty"`
}

// replayNotification applies a stored notification again.
func (s *server) replayNotification(w http.ResponseWriter, r *http.Request) error {
	issuer := chi.URLParam(r, "issuerId")
	id, err := strconv.ParseInt(chi.URLParam(r, "notificationId"), 10, 64)
	if err != nil {
		return errNoSuchNotification
	}
	if err := readCall(r, s.Rules(issuer), order.DecodeNothing); err != nil {
		return err
	}
	done, err := s.Store.Replay(r.Context(), issuer, id, s.parseStored)
	if err != nil {
		return err
	}
	annotate(r.Context(), slog.Int64("notificationId", id), slog.String("outcome", string(done.Outcome)))
	view := replayView{ID: done.ID, Outcome: done.Outcome}
	if done.OrderID != uuid.Nil {
		view.OrderID = done.OrderID.String()
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

// replayCursor begins the cursor of a replay, which is then the number of a notification.
const replayCursor = "n"

// replayNotifications applies the stored notifications of a time again, as many as one
// call may take.
func (s *server) replayNotifications(w http.ResponseWriter, r *http.Request) error {
	issuer := chi.URLParam(r, "issuerId")
	var wanted order.Replay
	var in store.ReplayRange
	err := readCall(r, s.Rules(issuer), func(text []byte, rules *order.Rules) (faults order.Faults) {
		wanted, faults = order.DecodeReplay(text, rules)
		digits, ok := strings.CutPrefix(wanted.Cursor, replayCursor)
		after, err := strconv.ParseInt(digits, 10, 64)
		if wanted.Cursor != "" && (!ok || err != nil) {
			faults = append(faults, order.Fault{Pointer: "/cursor", Code: order.CodeInvalidValue, Detail: "is not the nextCursor of an earlier answer"})
		}
		in.After = after
		return faults
	})
	if err != nil {
		return err
	}
	in.From, in.To, in.Outcome = wanted.From, wanted.To, store.Outcome(wanted.Outcome)
	counts, next, err := s.Store.ReplayRange(r.Context(), issuer, in, s.parseStored)
	if err != nil {
		return err
	}
	view := replaysView{Outcomes: counts}
	for _, n := range counts {
		view.Replayed += n
	}
	if next > 0 {
		view.NextCursor = replayCursor + strconv.FormatInt(next, 10)
	}
	annotate(r.Context(), slog.Any("notifications", counts))
	writeJSON(w, http.StatusOK, view)
	return nil
}
