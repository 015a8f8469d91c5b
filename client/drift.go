package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Drift is what asking D1 about an order found, and no notification had told: an event of
// the order whose cause is "reconciliation".
type Drift struct {
	OrderID        string    `json:"orderId"`
	Seq            int       `json:"seq"` // of the event in the order's timeline
	At             time.Time `json:"at"`
	Type           string    `json:"type"` // of the event
	Status         Status    `json:"status"`
	PreviousStatus Status    `json:"previousStatus"`
	Attention      []string  `json:"attention"` // codes
	AttemptID      string    `json:"attemptId"` // the attempt that asked
	// NotifiedLater tells whether a notification of the order has come since: the
	// missing one, only late, or one of a later step.
	NotifiedLater bool `json:"notifiedLater"`
}

// DriftFilter says which part of the list is returned.
type DriftFilter struct {
	From time.Time // inclusive
	To   time.Time // exclusive

	Limit  int    // of a page, at most 200; 0 means 50
	Cursor string // NextCursor of the page before
}

// DriftPage is a part of the list, newest first. NextCursor leads to the next one; it
// is empty at the end.
type DriftPage struct {
	Data       []Drift `json:"data"`
	NextCursor string  `json:"nextCursor"`
}

// Drift returns one page of what asking D1 found.
func (c *Client) Drift(ctx context.Context, f DriftFilter) (*DriftPage, error) {
	q := make(url.Values)
	for name, at := range map[string]time.Time{"from": f.From, "to": f.To} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	if f.Cursor != "" {
		q.Set("cursor", f.Cursor)
	}
	setLimit(q, f.Limit)
	return get[DriftPage](ctx, c, &request{doing: "listing drift", method: http.MethodGet, path: "/drift", query: q})
}
