package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/keelson/keelson/deploy"
	"github.com/keelson/keelson/deploy/images"
	"github.com/keelson/keelson/deploy/supervisor"
)

func imagesCommand(m machine) *cobra.Command {
	cmd := &cobra.Command{Use: "images", Short: "Container images of this machine"}
	cmd.AddCommand(&cobra.Command{
		Use:     "load FILE...",
		Short:   "Load image archives (docker save, OCI) into this machine's runtime",
		Example: "  sudo keelson images load app.tar",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			mc, err := m()
			if err != nil {
				return err
			}
			if _, err := os.Stat(mc.Paths.ContainerdSocket); errors.Is(err, os.ErrNotExist) {
				return errors.New("the runtime is not running: `keelson up` starts it")
			}
			for _, file := range args {
				out, err := images.Load(cmd.Context(), mc.Paths.ContainerdSocket, file)
				if err != nil {
					return err
				}
				fmt.Println(out)
			}
			return nil
		},
	})
	return cmd
}

func serviceCommand(m machine) *cobra.Command {
	cmd := &cobra.Command{Use: "service", Short: "Stop and start single services of this machine"}
	for _, verb := range []string{"stop", "start", "restart"} {
		cmd.AddCommand(&cobra.Command{
			Use:   verb + " NAME...",
			Short: map[string]string{"stop": "Stop services; they stay stopped until started or the next up", "start": "Start stopped services", "restart": "Stop and start services"}[verb],
			Args:  cobra.MinimumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				mc, err := m()
				if err != nil {
					return err
				}
				if verb != "start" {
					if err := mc.StopService(cmd.Context(), args...); err != nil {
						return err
					}
				}
				if verb != "stop" {
					return mc.StartService(cmd.Context(), args...)
				}
				return nil
			},
		})
	}
	return cmd
}

func prepareCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "prepare",
		Short:  "Load kernel modules and set parameters (up and the units do)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return deploy.PrepareKernel() },
	}
}

func superviseCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:    "supervise",
		Short:  "Run the supervisor (keelson up starts it)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(context.WithoutCancel(cmd.Context()), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			return supervisor.Run(ctx, dir, log, supervisor.Started)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the socket and pid files")
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}
