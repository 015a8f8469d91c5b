package api

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// timelineEntry is one thing that happened to an order.
type timelineEntry struct {
	At           time.Time         `json:"at"`
	Kind         string            `json:"kind"` // event, attempt, notification, note, change
	Event        *eventView        `json:"event,omitempty"`
	Attempt      *attemptView      `json:"attempt,omitempty"`
	Notification *notificationView `json:"notification,omitempty"`
	Note         *noteView         `json:"note,omitempty"`
	Change       *changeView       `json:"change,omitempty"`
}

type eventView struct {
	Seq            int               `json:"seq"`
	Type           store.EventType   `json:"type"`
	Status         order.Status      `json:"status"`
	PreviousStatus order.Status      `json:"previousStatus,omitempty"`
	Attention      []order.Attention `json:"attention"`
	Late           bool              `json:"late,omitempty"`
	Warnings       []string          `json:"warnings,omitempty"`
	Cause          store.CauseKind   `json:"cause"`
	CauseID        string            `json:"causeId,omitempty"`
	Actor          string            `json:"actor,omitempty"`
	Detail         json.RawMessage   `json:"detail,omitempty"`
}

type attemptView struct {
	ID            string            `json:"id"`
	Kind          store.AttemptKind `json:"kind"`
	Outcome       string            `json:"outcome"`
	Reason        string            `json:"reason"`
	HTTPStatus    int               `json:"httpStatus,omitempty"`
	ErrorCode     string            `json:"errorCode,omitempty"`
	ErrorText     string            `json:"errorText,omitempty"`
	OperationID   string            `json:"operationId,omitempty"`
	CorrelationID string            `json:"correlationId"`
	StartedAt     time.Time         `json:"startedAt"`
	DurationMS    int64             `json:"durationMs"`
	ClaimLost     bool              `json:"claimLost,omitempty"`
}

type notificationView struct {
	ID            int64        `json:"id"`
	OperationID   string       `json:"operationId,omitempty"`
	Outcome       string       `json:"outcome"`
	CorrelationID string       `json:"correlationId,omitempty"`
	TimesSeen     int          `json:"timesSeen"`
	LastSeenAt    time.Time    `json:"lastSeenAt"`
	Content       *contentView `json:"content,omitempty"`
}

// contentView is what may be shown of a notification: codes and ids as D1 wrote them, and
// its free texts without digits, which may be a part of anything. The carrier's message is
// not among them, for it names people.
type contentView struct {
	Operation       string               `json:"operation,omitempty"`
	OperationStatus string               `json:"operationStatus,omitempty"`
	Status          string               `json:"status,omitempty"` // details.status
	TrackingType    string               `json:"trackingType,omitempty"`
	ErrorCode       string               `json:"errorCode,omitempty"`
	Reason          string               `json:"reason,omitempty"`
	DueDate         string               `json:"dueDate,omitempty"`
	ProductionSite  string               `json:"productionSite,omitempty"`
	Shipment        *contentShipmentView `json:"shipment,omitempty"`
}

type contentShipmentView struct {
	Carrier        string `json:"carrier,omitempty"`
	TrackingNumber string `json:"trackingNumber,omitempty"`
	Status         string `json:"status,omitempty"`
	TrackingURL    string `json:"trackingUrl,omitempty"`
}

// noteView is what somebody wrote about an order.
type noteView struct {
	ID        string    `json:"id"`
	Text      string    `json:"text"`
	Author    string    `json:"author"`
	CreatedAt time.Time `json:"createdAt"`
}

func (s *server) getTimeline(w http.ResponseWriter, r *http.Request) error {
	id, err := orderID(r)
	if err != nil {
		return err
	}
	issuer := chi.URLParam(r, "issuerId")
	entries, err := s.Store.Timeline(r.Context(), issuer, id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, page[timelineEntry]{Data: viewTimeline(entries, s.Rules(issuer).Guard)})
	return nil
}

func viewTimeline(entries []store.Entry, guard order.PANGuard) []timelineEntry {
	views := make([]timelineEntry, len(entries))
	for i, e := range entries {
		v := timelineEntry{At: e.At}
		switch {
		case e.Event != nil:
			v.Kind = "event"
			v.Event = &eventView{
				e.Event.Seq, e.Event.Type, e.Event.Status, e.Event.PreviousStatus, e.Event.Attention, e.Event.Late, e.Event.Warnings,
				e.Event.Cause.Kind, e.Event.Cause.ID, e.Event.Cause.Actor, e.Event.Cause.Detail,
			}
		case e.Attempt != nil:
			a := e.Attempt
			v.Kind = "attempt"
			v.Attempt = &attemptView{
				a.ID.String(), a.Kind, a.Outcome, a.Reason, a.HTTPStatus, a.ErrorCode, a.ErrorText,
				a.OperationID, a.CorrelationID, a.StartedAt, a.Duration.Milliseconds(), a.ClaimLost,
			}
		case e.Notification != nil:
			n := e.Notification
			v.Kind = "notification"
			v.Notification = &notificationView{
				n.ID, n.OperationID, n.Outcome, n.CorrelationID, n.TimesSeen, n.LastSeenAt, viewContent(n.Body, guard),
			}
		case e.Note != nil:
			v.Kind = "note"
			v.Note = viewNote(e.Note)
		case e.Change != nil:
			change := viewChange(e.Change)
			v.Kind, v.Change = "change", &change
		}
		views[i] = v
	}
	return views
}

func viewNote(n *store.Note) *noteView {
	return &noteView{n.ID.String(), n.Text, n.Author, n.CreatedAt}
}

// viewContent shows of a notification's body what may be shown; nil when there is nothing.
func viewContent(body []byte, guard order.PANGuard) *contentView {
	if body == nil {
		return nil
	}
	op, err := d1client.ParseOperation(body)
	if err != nil {
		return nil
	}
	op = op.WithoutCardNumbers(guard)
	d := op.Details
	v := contentView{
		Operation: op.Operation, OperationStatus: op.Status, Status: d.Status,
		TrackingType: d.TrackingType, ErrorCode: op.ErrorCode, Reason: d1client.MaskDigits(d.Reason),
		DueDate: op.Report(order.Vocabulary{}).DueDate, ProductionSite: d.ProductionSite,
	}
	if s := (contentShipmentView{d.Shipment.Carrier, d.Shipment.TrackingNumber, d.Shipment.Status, d.Shipment.TrackingURL}); s != (contentShipmentView{}) {
		v.Shipment = &s
	}
	if v == (contentView{}) {
		return nil
	}
	return &v
}
