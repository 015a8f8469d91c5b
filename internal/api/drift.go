package api

import (
	"encoding/binary"
	"math"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// driftView is one thing that asking D1 found and no notification had told.
type driftView struct {
	OrderID        string            `json:"orderId"`
	Seq            int               `json:"seq"`
	At             time.Time         `json:"at"`
	Type           store.EventType   `json:"type"`
	Status         order.Status      `json:"status"`
	PreviousStatus order.Status      `json:"previousStatus,omitempty"`
	Attention      []order.Attention `json:"attention"`
	AttemptID      string            `json:"attemptId"`
	NotifiedLater  bool              `json:"notifiedLater"`
}

func viewDrift(d *store.Drift) driftView {
	return driftView{
		d.OrderID.String(), d.Seq, d.At, d.Type, d.Status, d.PreviousStatus, d.Attention, d.AttemptID, d.NotifiedLater,
	}
}

// listDrift tells what D1 had not told by itself.
func (s *server) listDrift(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	f := store.DriftFilter{From: q.time("from"), To: q.time("to"), Limit: q.limit()}
	q.read("cursor", func(v string) string {
		var ok bool
		if f.Before, ok = decodePlace(v); !ok {
			return notACursor
		}
		return ""
	})
	if err := q.err(); err != nil {
		return err
	}
	limit := f.Limit
	f.Limit++ // one more tells whether there is a next page
	list, err := s.Store.Drift(r.Context(), chi.URLParam(r, "issuerId"), f)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, pageBy(list, limit, viewDrift, func(d *store.Drift) string { return encodePlace(d.Place()) }))
	return nil
}

// placeVersion is that of the cursors of this list: the place of the last element.
const placeVersion = 2

func encodePlace(p store.DriftPlace) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(p.At.UnixMicro()))
	b = binary.BigEndian.AppendUint32(append(b, p.OrderID[:]...), uint32(p.Seq)) //nolint:gosec // an int4 of the database's
	return writeCursor(placeVersion, b)
}

func decodePlace(text string) (p store.DriftPlace, ok bool) {
	var b [8 + 16 + 4]byte
	if !readCursor(text, placeVersion, b[:]) {
		return p, false
	}
	at, seq := binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint32(b[24:])
	if at > maxPlaceTime || seq > math.MaxInt32 {
		return p, false
	}
	return store.DriftPlace{At: time.UnixMicro(int64(at)), OrderID: uuid.UUID(b[8:24]), Seq: int(seq)}, true
}

// maxPlaceTime is beyond any time of an event, and within what the database can hold.
const maxPlaceTime = 1 << 53
