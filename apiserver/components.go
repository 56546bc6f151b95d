package apiserver

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/keelson/keelson/apiserver/actions"
	"github.com/keelson/keelson/apiserver/etcd"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/store/etcdstore"
)

// components are what kubectl get componentstatuses shows: the two daemons, where upstream's
// listen by default, and every server of etcd by itself.
func (c Config) components(st store.Store, log *slog.Logger) []actions.Component {
	out := []actions.Component{
		{Name: "controller-manager", Ask: actions.AskHTTPS("https://127.0.0.1:10257/healthz")},
		{Name: "scheduler", Ask: actions.AskHTTPS("https://127.0.0.1:10259/healthz")},
	}
	if len(c.EtcdServers) == 0 {
		return append(out, actions.Component{Name: "etcd-0", Ask: actions.AskStore(st.Rev)})
	}
	for i, server := range c.EtcdServers {
		out = append(out, actions.Component{Name: fmt.Sprintf("etcd-%d", i), Ask: actions.AskStore(func(ctx context.Context) (int64, error) {
			one := c.remote(log)
			one.Servers = []string{server} // the store would ask another one
			st, end, err := etcdstore.Dial(one, c.EtcdPrefix)
			if err != nil {
				return 0, err
			}
			rev, err := st.Rev(ctx)
			_ = end() // the answer is there
			return rev, err
		})})
	}
	return out
}

// remote is the external etcd.
func (c Config) remote(log *slog.Logger) etcdstore.Remote {
	return etcdstore.Remote{
		Servers: c.EtcdServers, CAFile: c.EtcdCAFile, CertFile: c.EtcdCertFile, KeyFile: c.EtcdKeyFile,
		Log: etcd.Zap(log.With("room", "etcd")),
	}
}
