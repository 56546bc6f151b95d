package watchcache

import (
	"context"
	"time"
)

// Follow fills wake, which has one place, at once and then after each change of what sel selects, until ctx ends.
// Several changes may be one signal. It is an error when objects cannot be selected so.
func (c *Cache) Follow(ctx context.Context, sel Selection, wake chan<- struct{}) error {
	signal := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	for ctx.Err() == nil {
		_, cursor, err := c.ListAndWatch(sel)
		if err != nil {
			return err
		}
		signal()
		for {
			events, _, err := cursor.Next(ctx, time.Minute)
			if err != nil {
				break // the cache has started anew, or ctx has ended
			}
			if len(events) > 0 {
				signal()
			}
		}
		cursor.Close()
	}
	return nil
}
