package order_test

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"testing"

	"cardorder/internal/order"

	"pgregory.net/rapid"
)

const (
	pending    = order.OperationPending
	successful = order.OperationSuccessful
	failed     = order.OperationFailed
)

// says is a notification about operation "op".
func says(status string, operation order.OperationStatus) order.Report {
	return order.Report{OperationID: "op", Operation: operation, Status: status}
}

// now is D1's answer to the question about an order.
func now(status string) order.Report {
	r := says(status, pending)
	r.Now = true
	return r
}

var onHold = order.Report{OperationID: "op", Operation: pending, Status: "CARD_ON_HOLD", OnHold: true}

// after is what becomes of an order that D1 ships.
func after(evidence ...order.Evidence) order.State {
	s, _ := order.Advance(order.NewState(order.Shipped), order.Clock{}, evidence...)
	return s
}

// TestLife walks an order through every transition, one evidence at a time.
func TestLife(t *testing.T) {
	t.Parallel()
	var (
		lost, refused, notFound = order.LostAnswer{}, order.Refusal{}, order.NotFound{}
		taken, takenNoID        = order.Taken{OperationID: "op"}, order.Taken{}
		requested, prepared     = says("CARD_PROD_REQUESTED", pending), says("DATA_PREPARED", pending)
		ready, ongoing          = says("CARD_PROD_READY", pending), says("CARD_PROD_ONGOING", pending)
		done, shipped           = says("CARD_PROD_DONE", pending), says("CARD_SHIPPED", successful)
		dataTrouble, trouble    = says("DATA_EXCEPTION", pending), says("CARD_PROD_EXCEPTION", pending)
		cancelled               = says("CARD_PROD_CANCELED", successful)
		unknownStatus           = says("CARD_PROD_POLISHED", pending)
	)
	nowOnHold, nowFailed := onHold, says("DATA_EXCEPTION", failed)
	nowOnHold.Now, nowFailed.Now = true, true
	type list = []order.Attention
	for name, c := range map[string]struct {
		evidence  []order.Evidence
		want      order.Status
		attention list
	}{
		// Bringing it to D1.
		"nothing":                    {nil, order.Accepted, nil},
		"taken":                      {[]order.Evidence{taken}, order.Submitted, nil},
		"taken, without an id":       {[]order.Evidence{takenNoID}, order.Submitted, nil},
		"taken, the id comes later":  {[]order.Evidence{takenNoID, taken}, order.Submitted, nil},
		"lost":                       {[]order.Evidence{lost}, order.OutcomeUnknown, nil},
		"lost twice":                 {[]order.Evidence{lost, lost}, order.OutcomeUnknown, nil},
		"lost, then found":           {[]order.Evidence{lost, now("CARD_PROD_REQUESTED")}, order.Submitted, nil},
		"lost, then notified":        {[]order.Evidence{lost, ongoing}, order.InProduction, nil},
		"lost, then not found":       {[]order.Evidence{lost, notFound}, order.Accepted, nil},
		"lost, not found, sent":      {[]order.Evidence{lost, notFound, taken}, order.Submitted, nil},
		"lost, then refused":         {[]order.Evidence{lost, refused}, order.Rejected, list{order.AttentionRejected}},
		"not found, though not lost": {[]order.Evidence{notFound}, order.Accepted, nil},
		"refused":                    {[]order.Evidence{refused}, order.Rejected, list{order.AttentionRejected}},
		"refused, then lost":         {[]order.Evidence{refused, lost}, order.Rejected, list{order.AttentionRejected}},
		"refused, yet taken":         {[]order.Evidence{refused, taken}, order.Submitted, list{order.AttentionContradiction}},
		"refused, yet shipped":       {[]order.Evidence{refused, shipped}, order.Shipped, list{order.AttentionContradiction}},
		"taken, late refusal":        {[]order.Evidence{taken, refused}, order.Submitted, nil},
		"taken, late loss":           {[]order.Evidence{taken, lost}, order.Submitted, nil},
		"taken, late not found":      {[]order.Evidence{taken, notFound}, order.Submitted, nil},

		// The steps; an older one that comes later changes nothing.
		"requested":                  {[]order.Evidence{requested}, order.Submitted, nil},
		"prepared":                   {[]order.Evidence{taken, prepared}, order.DataPrepared, nil},
		"ready":                      {[]order.Evidence{taken, ready}, order.Ready, nil},
		"ongoing":                    {[]order.Evidence{taken, ongoing}, order.InProduction, nil},
		"done":                       {[]order.Evidence{taken, done}, order.Produced, nil},
		"shipped":                    {[]order.Evidence{taken, shipped}, order.Shipped, nil},
		"notified before the answer": {[]order.Evidence{prepared, taken}, order.DataPrepared, nil},
		"backwards":                  {[]order.Evidence{shipped, done, ongoing, ready, prepared, requested, taken}, order.Shipped, nil},

		// Unknown is normal, and proves only that D1 took the order.
		"an unknown status":              {[]order.Evidence{unknownStatus}, order.Submitted, list{order.AttentionUnknownStatus}},
		"an unknown status, later":       {[]order.Evidence{ready, unknownStatus}, order.Ready, list{order.AttentionUnknownStatus}},
		"no status":                      {[]order.Evidence{says("", pending)}, order.Submitted, nil},
		"an unknown operation status":    {[]order.Evidence{says("CARD_PROD_READY", "PAUSED")}, order.Ready, nil},
		"a status in other letters":      {[]order.Evidence{says("card_shipped", pending)}, order.Submitted, list{order.AttentionUnknownStatus}},
		"an unknown status, taken first": {[]order.Evidence{taken, unknownStatus}, order.Submitted, list{order.AttentionUnknownStatus}},

		// Beside the steps.
		"on hold":                    {[]order.Evidence{ready, onHold}, order.OnHold, nil},
		"on hold, then older news":   {[]order.Evidence{onHold, ready}, order.OnHold, nil},
		"on hold, then on":           {[]order.Evidence{onHold, ongoing}, order.InProduction, nil},
		"on hold, heard of too late": {[]order.Evidence{ongoing, onHold}, order.InProduction, nil},
		"data trouble":               {[]order.Evidence{requested, dataTrouble}, order.Exception, list{order.AttentionException}},
		"data trouble, passed":       {[]order.Evidence{dataTrouble, ready}, order.Ready, nil},
		"trouble":                    {[]order.Evidence{ongoing, trouble}, order.Exception, list{order.AttentionException}},
		"trouble, passed":            {[]order.Evidence{trouble, done}, order.Produced, nil},
		"trouble, heard of too late": {[]order.Evidence{done, trouble}, order.Produced, nil},

		// D1's word of now lifts them, to the highest step ever reached.
		"on hold, now ready":              {[]order.Evidence{onHold, now("CARD_PROD_READY")}, order.Ready, nil},
		"on hold, now prepared":           {[]order.Evidence{ready, onHold, now("DATA_PREPARED")}, order.Ready, nil},
		"trouble, now ongoing":            {[]order.Evidence{trouble, now("CARD_PROD_ONGOING")}, order.InProduction, nil},
		"trouble, now ready":              {[]order.Evidence{ongoing, trouble, now("CARD_PROD_READY")}, order.InProduction, nil},
		"data trouble, now requested":     {[]order.Evidence{dataTrouble, now("CARD_PROD_REQUESTED")}, order.Submitted, nil},
		"lifted, then trouble again":      {[]order.Evidence{trouble, now("CARD_PROD_ONGOING"), trouble}, order.Exception, list{order.AttentionException}},
		"trouble, now in an unknown way":  {[]order.Evidence{ongoing, trouble, now("CARD_PROD_POLISHED")}, order.Exception, list{order.AttentionUnknownStatus, order.AttentionException}},
		"on hold, now no status":          {[]order.Evidence{ready, onHold, now("")}, order.OnHold, nil},
		"on hold, no word of now":         {[]order.Evidence{onHold, ready}, order.OnHold, nil},
		"ongoing, now ready":              {[]order.Evidence{ongoing, now("CARD_PROD_READY")}, order.InProduction, nil},
		"failed, now ready":               {[]order.Evidence{says("CARD_PROD_EXCEPTION", failed), now("CARD_PROD_READY")}, order.Failed, list{order.AttentionFailed}},
		"cancelled, now ongoing":          {[]order.Evidence{cancelled, now("CARD_PROD_ONGOING")}, order.Cancelled, nil},
		"on hold, now failed":             {[]order.Evidence{onHold, order.Report{OperationID: "op", Operation: failed, Now: true}}, order.Failed, list{order.AttentionFailed}},
		"trouble, now the same trouble":   {[]order.Evidence{ongoing, trouble, now("CARD_PROD_EXCEPTION")}, order.Exception, list{order.AttentionException}},
		"trouble, now on hold":            {[]order.Evidence{ready, trouble, nowOnHold}, order.OnHold, nil},
		"trouble, now on hold before it":  {[]order.Evidence{ongoing, trouble, nowOnHold}, order.Exception, list{order.AttentionException}},
		"on hold, now failed for data":    {[]order.Evidence{onHold, nowFailed}, order.Failed, list{order.AttentionContradiction, order.AttentionFailed}},
		"a first word of now is on hold":  {[]order.Evidence{order.Report{OperationID: "op", Status: "X", OnHold: true, Now: true}}, order.OnHold, nil},
		"shipped is not on hold by state": {[]order.Evidence{shipped, onHold}, order.Shipped, nil},

		// Ends without a card; what outranks them contradicts them, in any order.
		"failed for data":                {[]order.Evidence{says("DATA_EXCEPTION", failed)}, order.Failed, list{order.AttentionFailed}},
		"failed in production":           {[]order.Evidence{ongoing, says("CARD_PROD_EXCEPTION", failed)}, order.Failed, list{order.AttentionFailed}},
		"failed, without details":        {[]order.Evidence{ongoing, says("", failed)}, order.Failed, list{order.AttentionFailed}},
		"failed, while being prepared":   {[]order.Evidence{says("DATA_PREPARED", failed)}, order.Failed, list{order.AttentionFailed}},
		"failed in an unknown way":       {[]order.Evidence{says("CARD_PROD_BURNT", failed)}, order.Failed, list{order.AttentionUnknownStatus, order.AttentionFailed}},
		"failed on hold":                 {[]order.Evidence{order.Report{OperationID: "op", Operation: failed, Status: "X", OnHold: true}}, order.Failed, list{order.AttentionFailed}},
		"trouble, then failed of it":     {[]order.Evidence{trouble, says("CARD_PROD_EXCEPTION", failed)}, order.Failed, list{order.AttentionFailed}},
		"failed, then the trouble":       {[]order.Evidence{says("CARD_PROD_EXCEPTION", failed), trouble}, order.Failed, list{order.AttentionFailed}},
		"data trouble, then failed":      {[]order.Evidence{dataTrouble, says("DATA_EXCEPTION", failed)}, order.Failed, list{order.AttentionFailed}},
		"failed, then older news":        {[]order.Evidence{says("CARD_PROD_EXCEPTION", failed), ongoing}, order.Failed, list{order.AttentionFailed}},
		"failed for data, yet ready":     {[]order.Evidence{says("DATA_EXCEPTION", failed), ready}, order.Ready, list{order.AttentionContradiction}},
		"ready, yet failed for data":     {[]order.Evidence{ready, says("DATA_EXCEPTION", failed)}, order.Ready, list{order.AttentionContradiction}},
		"failed, yet done":               {[]order.Evidence{says("", failed), done}, order.Produced, list{order.AttentionContradiction}},
		"done, yet failed":               {[]order.Evidence{done, says("", failed)}, order.Produced, list{order.AttentionContradiction}},
		"failed, and cancelled":          {[]order.Evidence{says("", failed), cancelled}, order.Cancelled, list{order.AttentionContradiction}},
		"cancelled":                      {[]order.Evidence{ready, cancelled}, order.Cancelled, nil},
		"cancelled, operation pending":   {[]order.Evidence{says("CARD_PROD_CANCELED", pending)}, order.Cancelled, nil},
		"cancelled, operation failed":    {[]order.Evidence{says("CARD_PROD_CANCELED", failed)}, order.Cancelled, nil},
		"cancelled, then older news":     {[]order.Evidence{cancelled, ongoing}, order.Cancelled, nil},
		"cancelled, yet done":            {[]order.Evidence{cancelled, done}, order.Produced, list{order.AttentionContradiction}},
		"shipped, yet cancelled":         {[]order.Evidence{shipped, cancelled}, order.Shipped, list{order.AttentionContradiction}},
		"cancelled, now shipped":         {[]order.Evidence{cancelled, now("CARD_SHIPPED")}, order.Shipped, list{order.AttentionContradiction}},
		"two failures, no contradiction": {[]order.Evidence{says("DATA_EXCEPTION", failed), says("CARD_PROD_EXCEPTION", failed)}, order.Failed, list{order.AttentionFailed}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := order.NewState(order.Shipped)
			for _, e := range c.evidence {
				s, _ = order.Advance(s, order.Clock{}, e)
			}
			if s.Status != c.want || !slices.Equal(s.Attention, c.attention) {
				t.Errorf("got %s %q, want %s %q", s.Status, s.Attention, c.want, c.attention)
			}
		})
	}
}

// Statuses that people and core banking give: evidence meets them too.
func TestLifeFromOwnStatuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from      order.Status
		evidence  order.Evidence
		want      order.Status
		attention []order.Attention
	}{
		{order.Held, order.LostAnswer{}, order.OutcomeUnknown, nil},
		{order.Held, order.Refusal{}, order.Rejected, []order.Attention{order.AttentionRejected}},
		{order.Held, order.Taken{OperationID: "op"}, order.Submitted, nil},
		{order.Held, order.NotFound{}, order.Held, nil},
		{order.Cancelled, order.LostAnswer{}, order.Cancelled, nil},
		{order.Cancelled, order.Refusal{}, order.Cancelled, nil},
		{order.Cancelled, order.NotFound{}, order.Cancelled, nil},
		// Cancelled before it was sent, and yet D1 has it.
		{order.Cancelled, order.Taken{OperationID: "op"}, order.Submitted, []order.Attention{order.AttentionContradiction}},
		{order.Cancelled, now("CARD_PROD_ONGOING"), order.InProduction, []order.Attention{order.AttentionContradiction}},
	} {
		s := order.NewState(order.Shipped)
		s.Status = c.from
		if s, _ = order.Advance(s, order.Clock{}, c.evidence); s.Status != c.want || !slices.Equal(s.Attention, c.attention) {
			t.Errorf("%s and %T: got %s %q, want %s %q", c.from, c.evidence, s.Status, s.Attention, c.want, c.attention)
		}
	}
}

// Hold, release and cancel change what D1 certainly does not have, and nothing else.
func TestHoldReleaseCancel(t *testing.T) {
	t.Parallel()
	changes := map[order.Evidence]map[order.Status]order.Status{
		order.Hold{}:    {order.Accepted: order.Held},
		order.Release{}: {order.Held: order.Accepted},
		order.Cancel{}:  {order.Accepted: order.Cancelled, order.Held: order.Cancelled, order.Rejected: order.Cancelled},
	}
	for evidence, want := range changes {
		for _, status := range order.Statuses {
			s := order.NewState(order.Shipped)
			s.Status = status
			s, _ = order.Advance(s, order.Clock{}) // with the attention of its status
			next, changed := order.Advance(s, order.Clock{}, evidence)
			if to, changes := want[status]; changed != changes || changes && (next.Status != to || next.Version != s.Version+1) {
				t.Errorf("%s and %T: %s, version %d", status, evidence, next.Status, next.Version)
			}
		}
	}
	if s := order.NewHeldState(order.Shipped, order.HeldByRequest); s.ToBeSent() || !s.Waiting() || s.Ended() {
		t.Errorf("a held order: %+v", s)
	}
}

// A second operation for one order is a second card: it is flagged at once and
// decides nothing.
func TestSecondOperation(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.SliceOfN(report(), 1, 5).Draw(t, "first operation")
		s := order.NewState(order.Shipped)
		for _, e := range first {
			r := e
			r.OperationID = "op"
			s, _ = order.Advance(s, order.Clock{}, r)
		}
		second := report().Draw(t, "second operation")
		second.OperationID, second.Now = "op-2", rapid.Bool().Draw(t, "now")
		var e order.Evidence = second
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			e = order.Taken{OperationID: "op-2"}
		case 1:
			e = order.Operations{IDs: []string{"op", "op-2"}}
		}
		next, changed := order.Advance(s, order.Clock{}, e)
		if !changed || !slices.Contains(next.Attention, order.AttentionSecondCard) || next.Attention[0] != order.AttentionSecondCard {
			t.Fatalf("not flagged: %+v", next)
		}
		next.Version, next.Attention = s.Version, slices.DeleteFunc(slices.Clone(next.Attention), func(a order.Attention) bool { return a == order.AttentionSecondCard })
		if !reflect.DeepEqual(content(next), content(s)) {
			t.Errorf("the second operation changed\n%+v to\n%+v", s, next)
		}
	})
	if s := after(order.Taken{OperationID: "op"}, order.Operations{IDs: []string{"op"}}); s.Attention != nil {
		t.Errorf("the only operation is taken for a second one: %q", s.Attention)
	}
}

// content is what of a state has to be equal.
func content(s order.State) order.State {
	s.Version = 0
	if len(s.Attention) == 0 {
		s.Attention = nil
	}
	return s
}

var (
	stepStatuses  = []string{"CARD_PROD_REQUESTED", "DATA_PREPARED", "CARD_PROD_READY", "CARD_PROD_ONGOING", "CARD_PROD_DONE", "CARD_SHIPPED"}
	otherStatuses = []string{"DATA_EXCEPTION", "CARD_PROD_EXCEPTION", "CARD_PROD_CANCELED", "CARD_ON_HOLD", "CARD_RETURNED", "CARD_PROD_POLISHED", ""}
)

// report is any notification about the operation "op".
func report() *rapid.Generator[order.Report] {
	return rapid.Custom(func(t *rapid.T) order.Report {
		status := rapid.SampledFrom(append(slices.Clone(stepStatuses), otherStatuses...)).Draw(t, "status")
		return order.Report{
			OperationID: rapid.SampledFrom([]string{"op", "op", "op", ""}).Draw(t, "operation id"),
			Operation:   rapid.SampledFrom([]order.OperationStatus{pending, successful, failed}).Draw(t, "operation"),
			Status:      status,
			OnHold:      status == "CARD_ON_HOLD",
			DueDate:     rapid.SampledFrom([]string{"", "2026-12-01", "2026-12-02", "2026-12-24T10:00:00+01:00"}).Draw(t, "due"),
			Site:        rapid.SampledFrom([]string{"", "Pont-Audemer", "Tczew"}).Draw(t, "site"),
			Parcel:      parcel().Draw(t, "parcel"),
		}
	})
}

// parcel is what a notification says of a parcel, mostly nothing.
func parcel() *rapid.Generator[order.Parcel] {
	return rapid.Custom(func(t *rapid.T) order.Parcel {
		return order.Parcel{
			TrackingNumber: rapid.SampledFrom([]string{"", "", "T1", "T1=6", "T2"}).Draw(t, "number"),
			Status:         rapid.SampledFrom([]order.Status{"", "", order.Delivered, order.Returned}).Draw(t, "carrier's code"),
		}
	})
}

// tracking is any notification of the tracking hub.
func tracking() *rapid.Generator[order.Tracking] {
	return rapid.Custom(func(t *rapid.T) order.Tracking {
		return order.Tracking{
			Operation: rapid.SampledFrom([]order.OperationStatus{pending, successful, successful, failed}).Draw(t, "operation"),
			Type:      rapid.SampledFrom([]string{order.TrackProduction, order.TrackShipment, order.TrackReturn, "CUSTOMS"}).Draw(t, "type"),
			Status:    rapid.SampledFrom([]string{"CARD_SHIPPED", "CARD_RETURNED", "CARD_LOST", ""}).Draw(t, "status"),
			Parcel:    parcel().Draw(t, "parcel"),
		}
	})
}

// notification is any notification about the order.
func notification() *rapid.Generator[order.Evidence] {
	return rapid.Custom(func(t *rapid.T) order.Evidence {
		switch rapid.IntRange(0, 7).Draw(t, "kind") {
		case 0, 1:
			return tracking().Draw(t, "tracking")
		case 2:
			return order.CancelDone{}
		}
		return report().Draw(t, "report")
	})
}

// D1 sends no time and no number, so what is known of an order depends on what
// was heard, never on the order of hearing it, nor on how often.
func TestOrderOfArrivalDoesNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		start := order.NewState(rapid.SampledFrom([]order.Status{order.Shipped, order.Produced}).Draw(t, "ends at"))
		start.Status = rapid.SampledFrom([]order.Status{order.Accepted, order.Held, order.OutcomeUnknown, order.Rejected, order.Cancelled}).Draw(t, "status")
		start, _ = order.Advance(start, order.Clock{}) // with the attention of its status
		heard := rapid.SliceOfN(notification(), 0, 12).Draw(t, "notifications")
		if rapid.Bool().Draw(t, "answered") {
			heard = append(heard, order.Taken{OperationID: "op"})
		}
		oneByOne := func(list []order.Evidence) order.State {
			s := start
			for _, e := range list {
				s, _ = order.Advance(s, order.Clock{}, e)
			}
			return s
		}
		want := oneByOne(heard)
		again := heard
		if len(heard) > 0 {
			again = append(slices.Clone(heard), rapid.SliceOfN(rapid.SampledFrom(heard), 0, 4).Draw(t, "again")...)
		}
		shuffled := rapid.Permutation(again).Draw(t, "order of arrival")
		if got := oneByOne(shuffled); !reflect.DeepEqual(content(got), content(want)) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if got, _ := order.Advance(start, order.Clock{}, shuffled...); !reflect.DeepEqual(content(got), content(want)) {
			t.Errorf("at once: got  %+v\nwant %+v", got, want)
		}
		// Hearing it all again changes nothing.
		if got, changed := order.Advance(want, order.Clock{}, shuffled...); changed || !reflect.DeepEqual(got, want) {
			t.Errorf("again: got  %+v\nwant %+v", got, want)
		}
	})
}

// With steps only, an order stands at the last of them.
func TestStepsOnly(t *testing.T) {
	t.Parallel()
	statuses := []order.Status{
		order.Submitted, order.DataPrepared, order.Ready, order.InProduction, order.Produced, order.Shipped, order.Delivered, order.Returned,
	}
	rapid.Check(t, func(t *rapid.T) {
		steps := rapid.SliceOfN(rapid.IntRange(0, len(statuses)-1), 1, 10).Draw(t, "steps")
		s := order.NewState(order.Shipped)
		for _, i := range steps {
			r := says(stepStatuses[min(i, len(stepStatuses)-1)], rapid.SampledFrom([]order.OperationStatus{pending, successful}).Draw(t, "operation"))
			r.Now = rapid.Bool().Draw(t, "now")
			if statuses[i] == order.Delivered || statuses[i] == order.Returned {
				r.Parcel.Status = statuses[i]
			}
			if i >= len(stepStatuses)-1 {
				r.Parcel.TrackingNumber = rapid.SampledFrom([]string{"", "T1"}).Draw(t, "number")
			}
			s, _ = order.Advance(s, order.Clock{}, r)
		}
		want := statuses[slices.Max(steps)]
		if s.Status != want || (s.Attention != nil) != (want == order.Returned) {
			t.Errorf("got %s %q, want %s", s.Status, s.Attention, want)
		}
	})
}

// anything is evidence of any kind.
func anything() *rapid.Generator[order.Evidence] {
	return rapid.Custom(func(t *rapid.T) order.Evidence {
		switch rapid.IntRange(0, 11).Draw(t, "kind") {
		case 0:
			return order.LostAnswer{}
		case 1:
			return order.NotFound{}
		case 2:
			return order.Refusal{}
		case 3:
			return order.Taken{OperationID: rapid.SampledFrom([]string{"", "op", "op-2"}).Draw(t, "id")}
		case 4:
			return order.Operations{IDs: []string{"op", "op-2"}[:rapid.IntRange(0, 2).Draw(t, "n")]}
		case 5:
			return order.Notice{Attention: rapid.SampledFrom([]order.Attention{
				order.AttentionOutcomeUnknown, order.AttentionAmbiguous, order.AttentionConflict, order.AttentionUnapplied,
			}).Draw(t, "attention")}
		case 6:
			return order.Details{}
		case 7, 8:
			return tracking().Draw(t, "tracking")
		}
		r := report().Draw(t, "report")
		r.Now = rapid.Bool().Draw(t, "now")
		return r
	})
}

// Whatever happens: a change raises the version by one and no change leaves it
// alone, no step is ever lost, and each status has its attention.
func TestAdvanceAlways(t *testing.T) {
	t.Parallel()
	steps := []order.Status{order.Submitted, order.DataPrepared, order.Ready, order.InProduction, order.Produced, order.Shipped}
	ofStatus := map[order.Attention]order.Status{
		order.AttentionRejected: order.Rejected, order.AttentionException: order.Exception, order.AttentionFailed: order.Failed,
		order.AttentionReturned: order.Returned,
	}
	rapid.Check(t, func(t *rapid.T) {
		s := order.NewState(order.Shipped)
		for range rapid.IntRange(1, 15).Draw(t, "changes") {
			evidence := rapid.SliceOfN(anything(), 0, 3).Draw(t, "evidence")
			before, kept := s, slices.Clone(s.Attention)
			next, changed := order.Advance(s, order.Clock{}, evidence...)
			if !slices.Equal(before.Attention, kept) {
				t.Fatalf("Advance changed the attention of the state it was given")
			}
			touched := slices.ContainsFunc(evidence, func(e order.Evidence) bool { return e == order.Evidence(order.Details{}) })
			differs := !reflect.DeepEqual(content(next), content(before))
			if changed != (differs || touched) {
				t.Fatalf("changed is %t, from %+v to %+v", changed, before, next)
			}
			if want := before.Version; changed && next.Version != want+1 || !changed && next.Version != want {
				t.Fatalf("version %d after %d, changed %t", next.Version, want, changed)
			}
			if !order.KnownStatus(next.Status) {
				t.Fatalf("status %q", next.Status)
			}
			if next.StepRank < before.StepRank || next.Rank < next.StepRank || slices.Contains(steps, next.Status) && next.Rank != next.StepRank {
				t.Fatalf("a step was lost: from %+v to %+v", before, next)
			}
			// Back it goes only out of a side state, and when a parcel that came back was sent again.
			if side := before.Status == order.OnHold || before.Status == order.Exception; next.Rank < before.Rank && !side && next.TopRank < 80 {
				t.Fatalf("it went back: from %+v to %+v", before, next)
			}
			for a, status := range ofStatus {
				if slices.Contains(next.Attention, a) != (next.Status == status) {
					t.Fatalf("%s has the attention %q", next.Status, next.Attention)
				}
			}
			if next.Status != order.OutcomeUnknown && slices.Contains(next.Attention, order.AttentionOutcomeUnknown) {
				t.Fatalf("%s, but its outcome is called unknown", next.Status)
			}
			if next.OperationID != before.OperationID && before.OperationID != "" {
				t.Fatalf("operation %s became %s", before.OperationID, next.OperationID)
			}
			s = next
		}
	})
}

// Details that belong to an order raise its version though its state is equal.
func TestDetailsMakeAVersion(t *testing.T) {
	t.Parallel()
	s := after(says("CARD_SHIPPED", successful))
	next, changed := order.Advance(s, order.Clock{}, order.Details{})
	if !changed || next.Version != s.Version+1 || !reflect.DeepEqual(content(next), content(s)) {
		t.Errorf("got %+v after %+v", next, s)
	}
	if again, changed := order.Advance(next, order.Clock{}); changed || !reflect.DeepEqual(again, next) {
		t.Errorf("nothing was learned, but got %+v after %+v", again, next)
	}
}

// The due date and the site of the furthest report count; of two at the same
// point, the later date.
func TestLatestDetailsCount(t *testing.T) {
	t.Parallel()
	at := func(status, due, site string) order.Report {
		r := says(status, pending)
		r.DueDate, r.Site = due, site
		return r
	}
	reports := []order.Evidence{
		at("CARD_PROD_READY", "2026-12-09", "Tczew"), at("CARD_PROD_ONGOING", "2026-12-02", ""),
		at("CARD_PROD_ONGOING", "2026-12-03", ""), at("CARD_PROD_DONE", "", ""),
	}
	for range reports {
		reports = append(reports[1:], reports[0])
		if s := after(reports...); s.DueDate.Value != "2026-12-03" || s.ProductionSite.Value != "Tczew" {
			t.Errorf("got %+v, %+v", s.DueDate, s.ProductionSite)
		}
	}
}

// What D1 says of the order answers the questions about it.
func TestAdoptionAnswersQuestions(t *testing.T) {
	t.Parallel()
	asked := []order.Evidence{
		order.LostAnswer{}, order.Notice{Attention: order.AttentionOutcomeUnknown},
		order.Notice{Attention: order.AttentionAmbiguous}, order.Notice{Attention: order.AttentionConflict},
	}
	want := []order.Attention{order.AttentionAmbiguous, order.AttentionConflict, order.AttentionOutcomeUnknown}
	if s := after(asked...); !slices.Equal(s.Attention, want) {
		t.Errorf("got %q, want %q", s.Attention, want)
	}
	for _, answer := range []order.Evidence{order.Taken{OperationID: "op"}, order.Taken{}, order.NotFound{}, now("CARD_PROD_READY"), says("", pending)} {
		if s := after(append(slices.Clone(asked), answer)...); len(s.Attention) > 0 {
			t.Errorf("%+v leaves %q", answer, s.Attention)
		}
	}
}

func TestWhereAnOrderStands(t *testing.T) {
	t.Parallel()
	type row struct{ ended, made, waiting bool }
	states := map[order.Status]order.State{
		order.Accepted:       after(),
		order.OutcomeUnknown: after(order.LostAnswer{}),
		order.Rejected:       after(order.Refusal{}),
		order.Submitted:      after(order.Taken{OperationID: "op"}),
		order.DataPrepared:   after(says("DATA_PREPARED", pending)),
		order.Ready:          after(says("CARD_PROD_READY", pending)),
		order.OnHold:         after(onHold),
		order.InProduction:   after(says("CARD_PROD_ONGOING", pending)),
		order.Exception:      after(says("CARD_PROD_EXCEPTION", pending)),
		order.Failed:         after(says("", failed)),
		order.Cancelled:      after(says("CARD_PROD_CANCELED", successful)),
		order.Produced:       after(says("CARD_PROD_DONE", pending)),
		order.Shipped:        after(says("CARD_SHIPPED", successful)),
		order.Held:           order.NewHeldState(order.Shipped, order.HeldByRequest),
		order.Delivered:      after(order.Report{Parcel: order.Parcel{Status: order.Delivered}}),
		order.Returned:       after(says("CARD_RETURNED", successful)),
	}
	want := map[order.Status]row{ // of an order that D1 ships
		order.Accepted:       {waiting: true},
		order.Held:           {waiting: true},
		order.OutcomeUnknown: {waiting: true},
		order.Rejected:       {},
		order.Submitted:      {},
		order.DataPrepared:   {},
		order.Ready:          {},
		order.OnHold:         {},
		order.InProduction:   {},
		order.Exception:      {},
		order.Failed:         {ended: true},
		order.Cancelled:      {ended: true},
		order.Produced:       {made: true},
		order.Shipped:        {ended: true, made: true},
		order.Delivered:      {ended: true, made: true},
		order.Returned:       {ended: true, made: true},
	}
	for _, status := range order.Statuses {
		s := states[status]
		if s.Status != status {
			t.Errorf("no state for %s: %+v", status, s)
		}
		for _, endsAt := range []order.Status{order.Shipped, order.Produced} {
			s.EndsAt = endsAt
			w := want[status]
			if status == order.Produced && endsAt == order.Produced {
				w.ended = true
			}
			if got := (row{s.Ended(), s.Made(), s.Waiting()}); got != w {
				t.Errorf("%s that ends at %s: got %+v, want %+v", status, endsAt, got, w)
			}
		}
	}
	// A card that was made stays made, whatever D1 says then.
	if s := after(says("CARD_PROD_DONE", pending), says("CARD_PROD_EXCEPTION", failed)); !s.Made() {
		t.Error("a failure unmade a card")
	}
}

func TestKnownStatus(t *testing.T) {
	t.Parallel()
	for _, s := range order.Statuses {
		if !order.KnownStatus(s) {
			t.Errorf("%s is not known", s)
		}
	}
	if len(order.Statuses) != 16 || order.KnownStatus("") || order.KnownStatus("accepted") {
		t.Error("the statuses are not those of an order's life")
	}
}

// Each attention tells a person what is the matter, who acts and how.
func TestEveryAttentionHasAdvice(t *testing.T) {
	t.Parallel()
	source, err := files.ReadFile("attention.go")
	if err != nil {
		t.Fatal(err)
	}
	codes := regexp.MustCompile(`(?m)^\tAttention\w+ +(?:Attention )? *= "(.*)"$`).FindAllSubmatch(source, -1)
	if len(codes) < 12 {
		t.Fatalf("found only %d codes in attention.go", len(codes))
	}
	sentence := regexp.MustCompile(`^[A-Z][^"]+\.$`)
	seen := map[order.Advice]string{}
	for _, match := range codes {
		code := string(match[1])
		a := order.Attention(code).Advice()
		if !sentence.MatchString(a.Detail) || !sentence.MatchString(a.Next) || !slices.Contains([]string{"support", "operator", "core-banking"}, a.Actor) {
			t.Errorf("%s: %+v", code, a)
		}
		if other, ok := seen[a]; ok {
			t.Errorf("%s says the same as %s", code, other)
		}
		seen[a] = code
	}
	if a := order.Attention("no-such").Advice(); a != (order.Advice{}) {
		t.Errorf("advice for an unknown code: %+v", a)
	}
}

func ExampleAdvance() {
	s := order.NewState(order.Shipped)
	for _, status := range []string{"CARD_PROD_ONGOING", "CARD_PROD_READY", "CARD_SHIPPED"} {
		var changed bool
		s, changed = order.Advance(s, order.Clock{}, order.Report{OperationID: "op", Operation: order.OperationPending, Status: status})
		fmt.Println(status, changed, s.Version, s.Status)
	}
	// Output:
	// CARD_PROD_ONGOING true 2 IN_PRODUCTION
	// CARD_PROD_READY false 2 IN_PRODUCTION
	// CARD_SHIPPED true 3 SHIPPED
}
