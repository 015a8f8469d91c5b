package client

import (
	"context"
	"net/http"
	"net/url"
)

// DailyReport is how many orders came to each point, by day, card product and batch.
type DailyReport struct {
	From     string       `json:"from"` // as 2026-01-31, the first day
	To       string       `json:"to"`   // the last one
	TimeZone string       `json:"timeZone"`
	Data     []DailyCount `json:"data"`
}

// DailyCount is one line of it. An order counts once for each point, on the day when it
// first came there.
type DailyCount struct {
	Date          string `json:"date"`
	CardProductID string `json:"cardProductId"` // empty for imported orders when nobody knew
	BatchID       string `json:"batchId"`       // empty for orders that came by themselves
	Accepted      int64  `json:"accepted"`
	Submitted     int64  `json:"submitted"`
	Produced      int64  `json:"produced"`
	Shipped       int64  `json:"shipped"`
	Failed        int64  `json:"failed"`
	Cancelled     int64  `json:"cancelled"`
	Open          int64  `json:"open"` // of those accepted that day, those that have not ended by now
}

// ReportPeriod is the days of a report, at most 31.
type ReportPeriod struct {
	From     string // as 2026-01-31
	To       string // the last day; empty means From
	TimeZone string // its IANA name; empty means UTC
}

// DailyReport counts what happened, day by day.
func (c *Client) DailyReport(ctx context.Context, p ReportPeriod) (*DailyReport, error) {
	q := url.Values{"from": {p.From}}
	if p.To != "" {
		q.Set("to", p.To)
	}
	if p.TimeZone != "" {
		q.Set("timeZone", p.TimeZone)
	}
	return get[DailyReport](ctx, c, &request{doing: "reading the daily report", method: http.MethodGet, path: "/reports/daily", query: q})
}
